"""Compare the code with files of reference numbers."""

import sys

from scripts.golden.command import main

if __name__ == "__main__":
    sys.exit(main())
