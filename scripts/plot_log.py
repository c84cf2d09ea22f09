"""Draw loss and metric curves of trainings."""

import sys

from scripts.visualization.training_curves import main

if __name__ == "__main__":
    sys.exit(main())
