"""Score the image-blind prior of a config."""

import sys

from scripts.scoring.prior import main

if __name__ == "__main__":
    sys.exit(main())
