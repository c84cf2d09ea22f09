"""Disturb trainings at random, resume them, and count losses: `make drill`."""

import sys

from scripts.drills.command import main

if __name__ == "__main__":
    sys.exit(main())
