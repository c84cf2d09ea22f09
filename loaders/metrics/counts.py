"""Sum of per-sample counts over processes, with each sample counted once."""

from __future__ import annotations

from collections import deque
from collections.abc import Hashable
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from loaders.errors import LoaderConfigError

Counts = npt.NDArray[np.int64]


@dataclass
class CountState:
    """Counts of one process at the end of an evaluation (small, picklable).

    Attributes:
        total: Sum of the counts of all samples in `seen`; None before the first sample.
        seen: Keys of the samples that this process counted.
        edges: Counts of its first and last samples, by key.
    """

    total: Counts | None = None
    seen: set[Hashable] = field(default_factory=set)
    edges: dict[Hashable, Counts] = field(default_factory=dict)


class CountAccumulator:
    """Sum of integer count vectors of samples, in bounded memory.

    Distributed samplers pad the last round with samples of the first one, so a sample may be
    evaluated twice: by one process (ignored at once) or by two (subtracted in `merge`). For the
    second case, the counts of the first and last `num_edges` samples of each process are kept,
    because padding puts the copies there. Of other samples only the key is kept.

    Args:
        num_edges: Number of samples to keep at either end.
    """

    def __init__(self, num_edges: int = 16) -> None:
        self._num_edges = num_edges
        self.reset()

    def reset(self) -> None:
        """Reset all counts."""
        self._total: Counts | None = None
        self._seen: set[Hashable] = set()
        self._first: dict[Hashable, Counts] = {}
        self._last: deque[tuple[Hashable, Counts]] = deque(maxlen=self._num_edges)

    def add(self, key: Hashable, counts: Counts) -> None:
        """Add the counts of one sample, unless this process has already counted it."""
        if key in self._seen:
            return
        self._seen.add(key)
        self._total = counts.copy() if self._total is None else self._total + counts
        if len(self._first) < self._num_edges:
            self._first[key] = counts
        else:
            self._last.append((key, counts))

    def state(self) -> CountState:
        """Return the state of this process for `merge`."""
        return CountState(self._total, set(self._seen), {**self._first, **dict(self._last)})


def merge(states: list[CountState]) -> tuple[Counts | None, int]:
    """Sum the states of all processes, each sample once.

    Args:
        states: One per process.

    Returns:
        The summed counts (None without samples) and the number of distinct samples.

    Raises:
        LoaderConfigError: If two processes counted a sample that is not at the edge of either: the
            sampler overlaps more than padding does.
    """
    edges = {key: counts for state in states for key, counts in state.edges.items()}
    total: Counts | None = None
    seen: set[Hashable] = set()
    for state in states:
        if state.total is None:
            continue
        total = state.total.copy() if total is None else total + state.total
        for key in seen & state.seen:
            if key not in edges:
                raise LoaderConfigError(
                    f"sample {key} was evaluated by two processes: use a sampler that splits the "
                    "data set without overlap, such as DefaultSampler with shuffle=False"
                )
            total = total - edges[key]
        seen |= state.seen
    return total, len(seen)
