"""Normalisation of the losses of a training step on any number of processes.

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
    """Numerator and denominator of a mean.

    Attributes:
        total: Scalar, weighted sum over points, voxels or pixels.
        count: Scalar, their number or the sum of their weights. Without gradient.
    """

    total: Tensor
    count: Tensor


LossTerms = Mapping[str, Sequence[LossTerm]]
"""Terms by the name of the loss; a loss is the sum of the means of its terms."""


class LossNormalizer:
    """Division of loss terms by their counts.

    Data-parallel training averages the gradients of all processes. With scope `'batch'`, a term is
    divided by the mean of its counts over the processes. The averaged gradient then equals the
    gradient of the joint batch on one process, for any distribution of the samples. With
    `'rank'`, each process divides by its own counts, as for the published models. The weight of a
    sample then depends on the other samples of its process. On one process both scopes are equal.

    A count below 1, for example of a batch without occupied voxels, is replaced by 1.

    Args:
        scope: `'batch'` or `'rank'`.

    Raises:
        ValueError: If the scope is neither of these.
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
        """Return whether an accumulated batch must be counted before the first backward pass."""
        return self.scope == "batch"

    def __call__(self, terms: LossTerms) -> dict[str, Tensor]:
        """Return the losses by name. All processes must call this with the same names.

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
        """Count terms within this context; losses are divided by the counts of their own call."""
        self._is_counting, self._num_counted, self._counted = True, 0, None
        try:
            yield
        finally:
            self._is_counting = False

    @contextmanager
    def dividing_by_counted(self) -> Iterator[None]:
        """Divide by the mean of the counted values, over calls and processes, in this context."""
        assert self._counted is not None, "counting() was not used before"
        self._divisors = _joint_mean(self._counted, self._num_counted)
        try:
            yield
        finally:
            self._divisors = None

    def _divide_by(self, counts: Tensor) -> Tensor:
        """Return the divisors `[n]` of terms with counts `[n]`."""
        if self._is_counting:
            self._counted = counts if self._counted is None else self._counted + counts
            self._num_counted += 1
        if self._divisors is not None:
            return self._divisors
        if self._is_counting or self.scope == "rank":
            return counts.clamp(min=1)
        return _joint_mean(counts, 1)


def normalize_alone(terms: LossTerms) -> dict[str, Tensor]:
    """Return the losses of a batch on one process, as used for the golden reference numbers."""
    return LossNormalizer("rank")(terms)


def _joint_mean(counts: Tensor, calls: int) -> Tensor:
    """Return the mean over calls and processes of counts `[n]`, which are sums over `calls`.

    A joint count below 1 is replaced by 1, as on one process with all samples.
    """
    replicas = calls
    if dist.is_available() and dist.is_initialized():
        counts = counts.clone()
        dist.all_reduce(counts)
        replicas *= dist.get_world_size()
    return counts.clamp(min=1) / replicas
