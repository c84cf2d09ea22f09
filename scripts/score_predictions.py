"""Score predictions on disk: `val.py --predictions`, with the same options."""

import sys

from scripts.scoring.predictions import main

if __name__ == "__main__":
    sys.exit(main())
