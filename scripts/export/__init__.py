"""Models for other runtimes: ONNX files and compiled programs."""
