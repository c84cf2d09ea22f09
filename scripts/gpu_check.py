"""Check the code on a GPU in under eight minutes, with only torch installed: `make gpu-check`."""

import sys

from scripts.gpu_checks.command import main

if __name__ == "__main__":
    sys.exit(main())
