"""Strip a checkpoint to its weights, with their hash in the file's name."""

import sys

from scripts.checkpoints.publishing import main

if __name__ == "__main__":
    sys.exit(main())
