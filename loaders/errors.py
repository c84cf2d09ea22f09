"""Errors about data on disk: one sentence each, naming the file and the remedy."""

from __future__ import annotations


class MissingDataError(FileNotFoundError):
    """A file or folder that the configuration asks for does not exist."""

    def __init__(self, message: str) -> None:
        super().__init__(message)


class BadDataError(ValueError):
    """A file exists but its content is broken, or does not fit the configuration."""
