"""Write a model as ONNX, for onnxruntime and other runtimes."""

import sys

from scripts.export.onnx_command import main

if __name__ == "__main__":
    sys.exit(main())
