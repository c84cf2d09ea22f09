"""The base class of all errors that a user can put right.

It stands here, without any import, since every room of the project may import it.
"""

from __future__ import annotations


class UserError(Exception):
    """Something that the user can put right: a setting, an option, a file, the environment.

    The message is one sentence that names the file or the key and the way out. Entry points print
    it in one line and exit with code 2. Every other exception is a defect and keeps its traceback.

    Subclasses name the kind. Where callers expect a built-in exception too (``ValueError``,
    ``FileNotFoundError``), a subclass inherits from both.
    """

    def __init__(self, message: str) -> None:
        super().__init__(message)


class ModelConfigError(UserError, ValueError):
    """A part of the model was configured with values that it cannot work with."""
