"""Train and compare overrides of a config over seeds: `python scripts/ablate.py SPEC`."""

import sys

from scripts.toy_runs.ablation import main

if __name__ == "__main__":
    sys.exit(main())
