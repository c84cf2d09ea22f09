"""Score predictions on disk without a model."""

import sys

from scripts.scoring.predictions import main

if __name__ == "__main__":
    sys.exit(main())
