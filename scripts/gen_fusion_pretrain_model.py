"""Merge an image and a LiDAR checkpoint into the initial weights of a fusion model."""

import sys

from scripts.checkpoints.fusion_pretrain import main

if __name__ == "__main__":
    sys.exit(main())
