"""Detectors."""

from .opus import OPUS

__all__ = ["OPUS"]
