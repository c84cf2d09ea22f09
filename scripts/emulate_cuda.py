"""Run all CUDA kernels on the CPU, in the tests that a GPU would run: `make cuda-emulation`."""

import sys

from scripts.build.cuda_emulator import main

if __name__ == "__main__":
    sys.exit(main())
