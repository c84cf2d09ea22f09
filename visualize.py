"""Draw predictions and ground truth: `python visualize.py CONFIG --weights CHECKPOINT`."""

import sys

from scripts.visualization.command import main

if __name__ == "__main__":
    sys.exit(main())
