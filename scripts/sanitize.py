"""Run the operations' tests on a CPU build with sanitizers: `make sanitize`."""

import sys

from scripts.build.sanitizers import main

if __name__ == "__main__":
    sys.exit(main())
