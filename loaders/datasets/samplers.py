"""A sampler that passes the epoch on to the data set."""

from __future__ import annotations

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
    """

    def set_epoch(self, epoch: int) -> None:
        """Sets the epoch of the order and of the data set's randomness."""
        super().set_epoch(epoch)
        set_epoch(self.dataset, epoch)
