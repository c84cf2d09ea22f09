"""Report what is installed, what was built and what is missing."""

import sys

from scripts.build.env_report import main

if __name__ == "__main__":
    sys.exit(main())
