"""Try the code on a GPU with torch alone, in under eight minutes: `make gpu-check`."""

import sys

from scripts.gpu_checks.command import main

if __name__ == "__main__":
    sys.exit(main())
