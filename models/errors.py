"""Base class of all errors that a user can correct.

This module imports nothing of the project, so every room may import it.
"""

from __future__ import annotations

import os

_WORKER_TRACEBACK = "\nOriginal Traceback"


def does_not_exist(path: object) -> str:
    """Return the words for a missing file; of a relative path also the folder that it was meant
    from.
    """
    text = os.fspath(path) if isinstance(path, os.PathLike) else str(path)
    place = "" if os.path.isabs(text) else f" in {os.getcwd()}"
    return f"{text} does not exist{place}"


class UserError(Exception):
    """An error that the user can correct: a setting, an option, a file, the environment.

    The message is one sentence that names the file or the key and the way out. Entry points print
    it in one line and exit with code 2. Every other exception is a defect and keeps its traceback.

    Subclasses name the kind. Where callers expect a built-in exception too (`ValueError`,
    `FileNotFoundError`), a subclass inherits from both. Every subclass takes the message as its
    only argument, so that it passes from one process to another with its type.
    """

    def __init__(self, message: str) -> None:
        super().__init__(message)

    @property
    def sentence(self) -> str:
        """The message in one line.

        A data-loading process of torch hands an exception to the main process as an exception of
        the same type, whose message is "Caught TYPE in DataLoader worker process N.", the
        traceback as text, and as its last entry "module.TYPE: message", as Python prints it.
        """
        text = str(self)
        if _WORKER_TRACEBACK in text:
            kind = type(self)
            text = text.rpartition(f"\n{kind.__module__}.{kind.__qualname__}: ")[2]
        return " ".join(text.split())


class ModelConfigError(UserError, ValueError):
    """A part of the model was configured with values that it cannot work with."""


class MissingPackageError(UserError, ImportError):
    """A package that the configuration needs is not installed."""


class MissingWeightsError(UserError, FileNotFoundError):
    """A file of pretrained weights does not exist."""
