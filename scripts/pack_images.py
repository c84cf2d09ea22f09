"""Write the images of a data set once at the size that training needs."""

import sys

from scripts.packing.command import main

if __name__ == "__main__":
    sys.exit(main())
