"""Atomic writing of pictures."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np

from scripts.runtime.atomic_write import write_atomically


def write_png(path: Path, image: np.ndarray) -> None:
    """Write a PNG atomically."""
    write_atomically(path, lambda p: cv2.imwrite(str(p), image, [cv2.IMWRITE_PNG_COMPRESSION, 6]))
