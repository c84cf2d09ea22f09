"""Short names for arrays, and fast products with rows of three.

In NumPy, broadcasting along an axis of length 3 is ten times slower than multiplying arrays of the
same shape. Rendering consists mostly of such products, so the functions below avoid broadcasting.
"""

from __future__ import annotations

import cv2
import numpy as np
from numpy.typing import ArrayLike


def f32(values: ArrayLike) -> np.ndarray:
    """Return an array of float32."""
    return np.asarray(values, np.float32)


def as_columns(values: np.ndarray) -> np.ndarray:
    """Repeat each of float32 [n] values three times: [n, 3]."""
    values = f32(values)
    if len(values) == 0:
        return np.zeros((0, 3), np.float32)
    return cv2.merge([values, values, values]).reshape(-1, 3)


def times(values: np.ndarray, colour: np.ndarray) -> np.ndarray:
    """Return the product float32 [n, 3] of each of float32 [n] values with one colour [3]."""
    return f32(values)[:, None] @ f32(colour)[None]


def normalise(vectors: np.ndarray) -> None:
    """Scale float32 [n, 3] vectors to unit length in place; almost zero vectors stay short."""
    length = np.sqrt(np.einsum("ij,ij->i", vectors, vectors))
    vectors *= as_columns(1 / np.maximum(length, np.float32(1e-3)))
