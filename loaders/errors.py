"""Errors about data on disk: one sentence each, naming the file and the remedy."""

from __future__ import annotations

from typing import ClassVar

from models.errors import UserError


class MissingDataError(UserError, FileNotFoundError):
    """A file or folder that the configuration asks for does not exist."""

    kind: ClassVar[str] = "missing"


class BadDataError(UserError, ValueError):
    """A file exists but its content is broken, or does not fit the configuration.

    Attributes:
        kind: What is wrong, in a word or two, for counting.
    """

    kind: ClassVar[str] = "broken"


class TruncatedDataError(BadDataError):
    """A file ends early."""

    kind = "truncated"


class WrongShapeError(BadDataError):
    """An image or a grid has another size than the configuration says."""

    kind = "wrong shape"


class UnknownClassError(BadDataError):
    """Labels hold a class that the configuration does not know."""

    kind = "class out of range"


class MetricConfigError(UserError, ValueError):
    """A metric cannot score what it is configured for."""
