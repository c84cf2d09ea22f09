"""Write only the weights of a checkpoint in half precision."""

import sys

from scripts.checkpoints.shrink import main

if __name__ == "__main__":
    sys.exit(main())
