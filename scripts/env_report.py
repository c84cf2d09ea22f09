"""Report installed packages, built extensions and missing parts."""

import sys

from scripts.build.env_report import main

if __name__ == "__main__":
    sys.exit(main())
