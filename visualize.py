"""Draw predictions and ground truth: `python visualize.py --config C --weights W`."""

import sys

from scripts.visualization.command import main

if __name__ == "__main__":
    sys.exit(main())
