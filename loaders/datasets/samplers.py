"""A sampler that passes the epoch on to the data set."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sized
from typing import Any

from mmengine.dataset import DefaultSampler
from mmengine.registry import DATA_SAMPLERS

from loaders.datasets.wrappers import set_epoch


@DATA_SAMPLERS.register_module()
class EpochSampler(DefaultSampler):
    """``DefaultSampler`` that passes the epoch on to the data set, through all wrappers.

    The data set seeds each sample's randomness from (seed, epoch, index), so augmentations differ
    from epoch to epoch, and do not depend on the number of workers or processes, nor on whether a
    run was interrupted and resumed. With wrappers, the index is the position in the outermost one
    (see :mod:`loaders.datasets.wrappers`). MMEngine's default hooks call ``set_epoch``.

    Args:
        dataset: The data set.
        multiple_of: Samples of a training step on all processes. The first samples of an epoch fill
            its last step up, so that this has the same samples on any number of processes.
        consecutive: Give every process samples that follow each other, instead of every n-th, where
            they are not shuffled: those of a scene share frames, which streaming computes once.
        **kwargs: Arguments of ``DefaultSampler``.
    """

    def __init__(
        self, dataset: Sized, multiple_of: int = 1, consecutive: bool = False, **kwargs: Any
    ) -> None:
        super().__init__(dataset, **kwargs)
        self.consecutive = consecutive
        self.multiple_of = multiple_of
        if self.round_up:
            multiple = math.lcm(multiple_of, self.world_size)
            self.total_size = math.ceil(len(dataset) / multiple) * multiple
            self.num_samples = self.total_size // self.world_size

    def __iter__(self) -> Iterator[int]:
        """Yields the indices of this process."""
        if not self.consecutive or self.shuffle or not self.round_up:
            return super().__iter__()
        full, rest = divmod(len(self.dataset), self.world_size)
        start = self.rank * full + min(self.rank, rest)
        share = list(range(start, start + full + (self.rank < rest)))
        # MMEngine gathers results in turns, one of each process, and drops those beyond the data
        # set's length: so what fills up stands last on the last processes.
        share += [start % len(self.dataset)] * (self.num_samples - len(share))
        return iter(share)

    def set_epoch(self, epoch: int) -> None:
        """Sets the epoch of the order and of the data set's randomness."""
        super().set_epoch(epoch)
        set_epoch(self.dataset, epoch)
