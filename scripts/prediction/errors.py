"""Errors about frames to predict."""

from __future__ import annotations

from models.errors import UserError


class FrameError(UserError, ValueError):
    """A frame lacks something or holds invalid values; the message names the camera or the key."""
