"""A cache of arrays that are slow to make."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from loaders.errors import LoaderConfigError
from models.bounded_cache import BoundedCache

Arrays = Sequence[npt.NDArray[Any]]


class ArrayCache(BoundedCache[Arrays]):
    """Cache of tuples of arrays, bounded by their bytes.

    Every process has its own (worker processes too: give the data loader persistent workers).

    Args:
        max_mb: Limit in MiB; 0 keeps nothing.

    Raises:
        LoaderConfigError: If the limit is no such number.
    """

    def __init__(self, max_mb: float) -> None:
        if not isinstance(max_mb, (int, float)) or not 0 <= max_mb < math.inf:
            raise LoaderConfigError(
                f"the size of a cache is {max_mb!r}: give MiB, or 0 to keep nothing"
            )
        super().__init__(int(max_mb * 2**20), _nbytes)


def without_caches(pipeline: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Return configs of transforms without their cache sizes, for readers that read files once."""
    return [
        {key: value for key, value in step.items() if not key.endswith("cache_mb")}
        for step in pipeline
    ]


def _nbytes(arrays: Arrays) -> int:
    return int(np.sum([array.nbytes for array in arrays]))
