"""Create the toy data set."""

import sys

from scripts.toy_nuscenes.command import main

if __name__ == "__main__":
    sys.exit(main())
