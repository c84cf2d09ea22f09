"""Frames per second of a model, and what a frame is made of."""

import sys

from scripts.timings.command import main

if __name__ == "__main__":
    sys.exit(main())
