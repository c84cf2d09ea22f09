"""Fuzz readers with damaged files, and native operations with invalid arguments."""

import sys

from scripts.fuzzing.runner import main

if __name__ == "__main__":
    sys.exit(main())
