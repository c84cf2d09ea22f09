"""Measure a model's frames per second and the stages of a frame."""

import sys

from scripts.timings.command import main

if __name__ == "__main__":
    sys.exit(main())
