"""Draw augmented samples of a config's data set."""

import sys

from scripts.visualization.browsing import main

if __name__ == "__main__":
    sys.exit(main())
