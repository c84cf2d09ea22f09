"""Errors about data and the parts that read it. Each is one sentence with the remedy."""

from __future__ import annotations

from typing import ClassVar

from models.errors import UserError


class LoaderConfigError(UserError, ValueError):
    """A data set, a pipeline or a metric is configured with values that cannot work."""


class ImageBackendError(UserError, RuntimeError):
    """A requested image decoding library does not work here."""


class MissingDataError(UserError, FileNotFoundError):
    """A file or folder named in the configuration does not exist."""

    kind: ClassVar[str] = "missing"


class BadDataError(UserError, ValueError):
    """A file exists, but its content is broken or does not match the configuration.

    Attributes:
        kind: Kind of fault in one or two words, for counting.
    """

    kind: ClassVar[str] = "broken"


class TruncatedDataError(BadDataError):
    """A file ends early."""

    kind = "truncated"


class WrongShapeError(BadDataError):
    """An image or a grid does not have the configured size."""

    kind = "wrong shape"


class UnknownClassError(BadDataError):
    """Labels hold a class that is not configured."""

    kind = "class out of range"
