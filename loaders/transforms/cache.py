"""A bounded memory of arrays that are slow to make."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt


class ArrayCache:
    """Keeps tuples of arrays up to a total size; the one used longest ago goes first.

    Every process has its own (worker processes too: give the data loader persistent workers).
    Callers must not write to what they get.

    Args:
        max_mb: Limit in MiB; 0 keeps nothing.
    """

    def __init__(self, max_mb: float) -> None:
        self._limit = int(max_mb * 2**20)
        self._used = 0
        self._entries: OrderedDict[Hashable, Sequence[npt.NDArray[Any]]] = OrderedDict()

    @property
    def nbytes(self) -> int:
        """Bytes kept."""
        return self._used

    def get(
        self, key: Hashable, make: Callable[[], Sequence[npt.NDArray[Any]]]
    ) -> Sequence[npt.NDArray[Any]]:
        """Returns the arrays under ``key``, from ``make()`` if they are not kept."""
        if key in self._entries:
            self._entries.move_to_end(key)
            return self._entries[key]
        arrays = make()
        size = _nbytes(arrays)
        if size <= self._limit:
            self._entries[key] = arrays
            self._used += size
            while self._used > self._limit:
                _, dropped = self._entries.popitem(last=False)
                self._used -= _nbytes(dropped)
        return arrays


def without_caches(pipeline: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Returns configs of transforms without their cache sizes, for readers that read files once."""
    return [
        {key: value for key, value in step.items() if not key.endswith("cache_mb")}
        for step in pipeline
    ]


def _nbytes(arrays: Sequence[npt.NDArray[Any]]) -> int:
    return int(np.sum([array.nbytes for array in arrays]))
