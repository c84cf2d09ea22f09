"""The version of the project. A test compares setup.py, CITATION.cff and the changelog with it."""

__version__ = "0.2.0"
