"""Run all CUDA kernels on the CPU, in the tests that a GPU would run: `make cuda-emulation`."""

from scripts.build.cuda_emulator import main

if __name__ == "__main__":
    main()
