"""Run the whole path on the toy data: `make demo`, `make toy-train`."""

import sys

from scripts.toy_runs.demo import main

if __name__ == "__main__":
    sys.exit(main())
