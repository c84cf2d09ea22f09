"""Errors of the data set generator that a user can correct."""

from __future__ import annotations

from models.errors import UserError


class DataSetError(UserError, RuntimeError):
    """The output folder cannot be used as requested, or the machine cannot make the data set."""
