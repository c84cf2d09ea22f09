"""What a user can put right about a data set that is being made."""

from __future__ import annotations

from models.errors import UserError


class DataSetError(UserError, RuntimeError):
    """The output folder cannot be used as asked, or the machine cannot make the data set."""
