"""Emulate all CUDA kernels on the CPU and run the GPU tests: `make cuda-emulation`."""

import sys

from scripts.build.cuda_emulator import main

if __name__ == "__main__":
    sys.exit(main())
