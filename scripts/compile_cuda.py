"""Compile the CUDA sources and report each kernel's resources: `make cuda-report`."""

import sys

from scripts.build.cuda_compiler import main

if __name__ == "__main__":
    sys.exit(main())
