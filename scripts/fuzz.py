"""Run damaged files and odd calls of operations in a watched process."""

import sys

from scripts.fuzzing.runner import main

if __name__ == "__main__":
    sys.exit(main())
