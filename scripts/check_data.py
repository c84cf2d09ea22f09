"""Check a data set: its info files and the files listed in them."""

import sys

from scripts.data_checks.checker import main

if __name__ == "__main__":
    sys.exit(main())
