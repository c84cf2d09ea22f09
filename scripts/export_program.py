"""Compile a model into a package that a C++ program loads."""

import sys

from scripts.export.program_command import main

if __name__ == "__main__":
    sys.exit(main())
