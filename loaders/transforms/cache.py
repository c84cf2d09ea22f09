"""Cache of arrays that are slow to compute."""

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

    Every process, also every worker, has its own cache; use persistent workers.

    Args:
        max_mb: Limit in MiB; 0 disables the cache.

    Raises:
        LoaderConfigError: If the limit is not a finite number >= 0.
    """

    def __init__(self, max_mb: float) -> None:
        if not isinstance(max_mb, (int, float)) or not 0 <= max_mb < math.inf:
            raise LoaderConfigError(
                f"the size of a cache is {max_mb!r}: set MiB, or 0 for no cache"
            )
        super().__init__(int(max_mb * 2**20), _nbytes)


def without_caches(pipeline: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Return configs of transforms without their cache sizes, for code that reads files once."""
    return [
        {key: value for key, value in step.items() if not key.endswith("cache_mb")}
        for step in pipeline
    ]


def _nbytes(arrays: Arrays) -> int:
    return int(np.sum([array.nbytes for array in arrays]))
