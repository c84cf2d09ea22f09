"""Predict frames of a folder or an info file: `scripts/predict.py CONFIG --weights FILE ...`."""

import sys

from scripts.inference.command import main

if __name__ == "__main__":
    sys.exit(main())
