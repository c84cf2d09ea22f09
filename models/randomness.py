"""Random numbers by sample, which do not depend on the batch, the process or the device.

Dimension letters: B batch, C channels.
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from mmengine.structures import BaseDataElement
from torch import Tensor

from models.ops.counter_hash import kept_by_dropout

_SEEDS = 2**63


@dataclass(frozen=True)
class SampleDraws:
    """Seeds of the samples of a batch.

    Attributes:
        seeds: One seed per sample, in `[0, 2^63)`.
    """

    seeds: tuple[int, ...]

    @classmethod
    def of(cls, data_samples: Sequence[BaseDataElement]) -> SampleDraws:
        """Return the seeds that the data set stored in the samples.

        The data set derives `seed` in a sample's metainfo from (seed, epoch, sample). For a sample
        without a seed, draw one from torch's CPU generator.
        """
        seeds = [sample.metainfo.get("seed") for sample in data_samples]
        return cls(tuple(_fresh_seed() if seed is None else int(seed) for seed in seeds))

    @classmethod
    def fresh(cls, batch_size: int) -> SampleDraws:
        """Draw seeds from torch's CPU generator."""
        return cls(tuple(_fresh_seed() for _ in range(batch_size)))

    def part(self, name: str | int) -> SampleDraws:
        """Return seeds for a part of the model, independent of those of other parts."""
        word = name if isinstance(name, int) else zlib.crc32(name.encode())
        states = (np.random.SeedSequence([seed, word]) for seed in self.seeds)
        return SampleDraws(tuple(int(s.generate_state(1, np.uint64)[0]) >> 1 for s in states))

    def generators(self) -> list[torch.Generator]:
        """Return a new CPU generator for each sample."""
        return [torch.Generator().manual_seed(seed) for seed in self.seeds]


def dropout(x: Tensor, probability: float, seeds: Tensor | None) -> Tensor:
    """Apply dropout to every sample with its own seed; the masks are the same on every device.

    Args:
        x: `[B, ..., C]`.
        probability: Probability that an element becomes zero; the others are scaled up to keep the
            expected value.
        seeds: int64 `[B]`, on the device of `x`, so that a replayed CUDA graph reads the current
            seeds. None disables dropout.
    """
    if seeds is None or probability == 0:
        return x
    rows = (x[0].numel() // x.shape[-1], x.shape[-1])
    kept = kept_by_dropout(rows, probability, seeds)
    return torch.where(kept.view(x.shape), x / (1 - probability), 0.0)


def _fresh_seed() -> int:
    return int(torch.randint(_SEEDS - 1, ()))
