"""The version of the project. setup.py, CITATION.cff and the changelog agree with it (tested)."""

__version__ = "0.2.0"
