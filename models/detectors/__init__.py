"""Detectors: from images to the outputs of a head."""

from .opus import OPUS

__all__ = ["OPUS"]
