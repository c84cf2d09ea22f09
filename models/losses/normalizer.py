"""What the losses of a training step are divided by, on any number of processes.

Dimension letters: n loss terms of a training step.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor

SCOPES = ("batch", "rank")


@dataclass(frozen=True)
class LossTerm:
    """A mean whose division is still to be done.

    Attributes:
        total: Scalar, weighted sum over what is counted.
        count: Scalar, how much was counted: points, voxels, pixels or shares of them. Without
            gradient.
    """

    total: Tensor
    count: Tensor


LossTerms = Mapping[str, Sequence[LossTerm]]
"""Terms by the name of the loss; a loss is the sum of its means."""


class LossNormalizer:
    """Divide loss terms by their counts.

    Data-parallel training averages the gradients of all processes. With the scope `'batch'` a
    term is divided by the mean of its counts over the processes, so that this average is the
    gradient of the joint batch on one process, however the samples are spread. With `'rank'` a
    process divides by its own counts, as the published models were trained: what a sample weighs
    then depends on which samples share its process. On one process both are the same.

    A count below 1, as of a batch without any occupied voxel, is taken for 1.

    Args:
        scope: `'batch'` or `'rank'`.

    Raises:
        ValueError: If the scope is another.
    """

    def __init__(self, scope: str = "batch") -> None:
        if scope not in SCOPES:
            raise ValueError(f"loss_normalizer must be one of {SCOPES}, got {scope!r}.")
        self.scope = scope
        self._is_counting = False
        self._num_counted = 0
        self._counted: Tensor | None = None
        self._divisors: Tensor | None = None

    @property
    def needs_counting(self) -> bool:
        """Whether the parts of an accumulated batch have to be counted before the first one's
        gradient is computed.
        """
        return self.scope == "batch"

    def __call__(self, terms: LossTerms) -> dict[str, Tensor]:
        """Return the losses by name; every process calls this with the same names.

        Args:
            terms: Terms by the name of the loss, at least one each.
        """
        counts = torch.stack([term.count.double() for part in terms.values() for term in part])
        divisors = iter(self._divide_by(counts))
        return {
            name: torch.stack([term.total / next(divisors).to(term.total) for term in part]).sum()
            for name, part in terms.items()
        }

    @contextmanager
    def counting(self) -> Iterator[None]:
        """Within, only count: losses are divided by the counts of their own call."""
        self._is_counting, self._num_counted, self._counted = True, 0, None
        try:
            yield
        finally:
            self._is_counting = False

    @contextmanager
    def dividing_by_counted(self) -> Iterator[None]:
        """Within, divide by the mean of what has been counted, over calls and processes."""
        assert self._counted is not None, "nothing has been counted"
        self._divisors = _joint_mean(self._counted, self._num_counted)
        try:
            yield
        finally:
            self._divisors = None

    def _divide_by(self, counts: Tensor) -> Tensor:
        """Return the divisors `[n]` of terms with the counts `[n]`."""
        if self._is_counting:
            self._counted = counts if self._counted is None else self._counted + counts
            self._num_counted += 1
        if self._divisors is not None:
            return self._divisors
        if self._is_counting or self.scope == "rank":
            return counts.clamp(min=1)
        return _joint_mean(counts, 1)


def normalize_alone(terms: LossTerms) -> dict[str, Tensor]:
    """Return the losses of a batch by itself: the golden numbers are such."""
    return LossNormalizer("rank")(terms)


def _joint_mean(counts: Tensor, calls: int) -> Tensor:
    """Return the mean of counts `[n]`, summed over `calls`, over calls and processes.

    The joint count is taken for 1 where it is less, as one process with all samples takes it.
    """
    replicas = calls
    if dist.is_available() and dist.is_initialized():
        counts = counts.clone()
        dist.all_reduce(counts)
        replicas *= dist.get_world_size()
    return counts.clamp(min=1) / replicas
