"""Show what a checkpoint holds and which config it fits."""

import sys

from scripts.checkpoints.inspection import main

if __name__ == "__main__":
    sys.exit(main())
