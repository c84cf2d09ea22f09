"""Short names for arrays."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike


def f32(values: ArrayLike) -> np.ndarray:
    """An array of float32."""
    return np.asarray(values, np.float32)
