"""Compare a checkpoint with the model of a config."""

import sys

from scripts.checkpoints.inspection import main

if __name__ == "__main__":
    sys.exit(main())
