"""Make the pictures of docs/gallery.md: `make gallery`."""

import sys

from scripts.toy_runs.gallery import main

if __name__ == "__main__":
    sys.exit(main())
