"""Print the resolved config, every part with its values."""

import sys

from scripts.runtime.config_printer import main

if __name__ == "__main__":
    sys.exit(main())
