"""Train and compare every model on the toy data: `make family`."""

import sys

from scripts.toy_runs.family import main

if __name__ == "__main__":
    sys.exit(main())
