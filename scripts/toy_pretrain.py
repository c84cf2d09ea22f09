"""Train the toy line's checkpoint: `make toy-pretrain`."""

import sys

from scripts.toy_runs.pretrain import main

if __name__ == "__main__":
    sys.exit(main())
