"""Write the info files of a data set from its tables."""

import sys

from scripts.sweep_infos.generator import main

if __name__ == "__main__":
    sys.exit(main())
