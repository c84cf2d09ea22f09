"""Unique voxels of a set of points.

Dimensions:
    n points, m voxels with a point.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ._extension import native, on_load, runs_natively

__all__ = ["unique_voxels", "unique_voxels_reference"]


def unique_voxels(keys: Tensor, num_keys: int) -> tuple[Tensor, Tensor]:
    """Return the sorted unique keys, and the position of each key among them.

    The native operation marks the keys in a bitmap instead of sorting them. On a GPU it
    synchronises with the device once, because the shape of the result depends on the data.

    Args:
        keys: int64 [n], linear index of each point's voxel, in `[0, num_keys)`.
        num_keys: number of voxels in all grids of the batch. The bitmap uses 1.5 bits per voxel,
            on a GPU 4 bits.

    Returns:
        int64 [m], ascending, and int64 [n] in `[0, m)`.

    Raises:
        ValueError: a shape or dtype does not fit, or a key is out of range (native only).
        ExtensionError: the native extension is not built.
    """
    _check_arguments(keys, num_keys)
    if not runs_natively("unique_voxels", keys):
        return unique_voxels_reference(keys, num_keys)
    return native("unique_voxels")(keys, num_keys)


def unique_voxels_reference(keys: Tensor, num_keys: int) -> tuple[Tensor, Tensor]:
    """Compute `unique_voxels` in plain torch (reference implementation)."""
    _check_arguments(keys, num_keys)
    unique, inverse = torch.unique(keys, return_inverse=True)
    return unique, inverse


def _check_arguments(keys: Tensor, num_keys: int) -> None:
    if keys.dim() != 1 or keys.dtype != torch.int64:
        raise ValueError(f"keys must be int64 [n], got {keys.dtype} {list(keys.shape)}")
    if num_keys < 0:
        raise ValueError(f"num_keys must not be negative, got {num_keys}")


@on_load
def _register() -> None:
    @torch.library.register_fake("opus::unique_voxels")
    def _(keys: Tensor, num_keys: int) -> tuple[Tensor, Tensor]:
        count = torch.library.get_ctx().new_dynamic_size()
        return keys.new_empty(count), keys.new_empty(keys.shape)
