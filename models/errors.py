"""Base class of all errors that a user can correct.

This module imports nothing of the project, so every package may import it.
"""

from __future__ import annotations

import os

_WORKER_TRACEBACK = "\nOriginal Traceback"


def does_not_exist(path: object) -> str:
    """Return the message for a missing file. For a relative path it names the current folder."""
    text = os.fspath(path) if isinstance(path, os.PathLike) else str(path)
    place = "" if os.path.isabs(text) else f" in {os.getcwd()}"
    return f"{text} does not exist{place}"


class UserError(Exception):
    """An error that the user can correct: a setting, an option, a file, the environment.

    The message is one sentence that names the file or the key and the solution. Entry points print
    it in one line and exit with code 2. Every other exception is a defect and keeps its traceback.

    Subclasses name the kind of error. If callers also expect a built-in exception (`ValueError`,
    `FileNotFoundError`), the subclass inherits from both. Every subclass takes the message as its
    only argument, so its type survives the transfer between processes.
    """

    def __init__(self, message: str) -> None:
        super().__init__(message)

    @property
    def sentence(self) -> str:
        """Return the message in one line.

        An exception in a worker process of torch's DataLoader is raised again in the main process
        with the same type. Its message then consists of "Caught TYPE in DataLoader worker process
        N." and the traceback as text, whose last entry is "module.TYPE: message".
        """
        text = str(self)
        if _WORKER_TRACEBACK in text:
            kind = type(self)
            text = text.rpartition(f"\n{kind.__module__}.{kind.__qualname__}: ")[2]
        return " ".join(text.split())


class ModelConfigError(UserError, ValueError):
    """A part of the model has an invalid configuration."""


class MissingPackageError(UserError, ImportError):
    """A package that the configuration requires is not installed."""


class MissingWeightsError(UserError, FileNotFoundError):
    """A file of pretrained weights does not exist."""
