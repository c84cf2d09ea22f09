"""Maximum over the points of each voxel.

Dimensions:
    n points, m voxels, C channels.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ._extension import native, on_load, runs_natively

__all__ = ["voxel_max", "voxel_max_reference"]

_MAX_VOXELS = 2**31 - 1


def voxel_max(features: Tensor, voxel_index: Tensor, num_voxels: int) -> Tensor:
    """Compute the per-voxel, per-channel maximum of point features.

    Ties go to the point with the lowest index. Only this point receives the gradient. NaN is larger
    than every number, so that it is not hidden; the first NaN is chosen. Voxels without points are
    0 and pass no gradient.

    On a GPU, points with an index out of range are ignored, because an error would require a
    synchronisation. float64 uses the reference implementation there.

    Args:
        features: [n, C], float32 or float64.
        voxel_index: int64 [n], each in `[0, num_voxels)`.
        num_voxels: m.

    Returns:
        [m, C], differentiable in `features`.

    Raises:
        ValueError: a shape or dtype does not fit, or an index is out of range (on the CPU; the
            reference implementation raises torch's error).
        ExtensionError: the native extension is not built.
    """
    _check_arguments(features, voxel_index, num_voxels)
    if not runs_natively("voxel_max", features, on_gpu=(torch.float32,)):
        return voxel_max_reference(features, voxel_index, num_voxels)
    with_winner = torch.is_grad_enabled() and features.requires_grad
    return native("voxel_max")(features, voxel_index, num_voxels, with_winner)[0]


def voxel_max_reference(features: Tensor, voxel_index: Tensor, num_voxels: int) -> Tensor:
    """Compute `voxel_max` in plain torch (reference implementation)."""
    _check_arguments(features, voxel_index, num_voxels)
    n, channels = features.shape
    target = voxel_index[:, None].expand(n, channels)
    with torch.no_grad():
        maximum = features.new_zeros(num_voxels, channels).scatter_reduce(
            0, target, features, "amax", include_self=False
        )
        mine = maximum.gather(0, target)
        wins = (features == mine) | (features.isnan() & mine.isnan())
        point = torch.arange(n, device=features.device)[:, None]
        winner = torch.full((num_voxels, channels), n, device=features.device).scatter_reduce(
            0, target, torch.where(wins, point, n), "amin"
        )
    # Row n represents "no point".
    padded = torch.cat([features, features.new_zeros(1, channels)])
    return padded.gather(0, winner)


def _check_arguments(features: Tensor, voxel_index: Tensor, num_voxels: int) -> None:
    if features.dim() != 2 or features.dtype not in (torch.float32, torch.float64):
        raise ValueError(
            f"features must be float32 or float64 [n, C], got {features.dtype} "
            f"{list(features.shape)}"
        )
    if voxel_index.shape != features.shape[:1] or voxel_index.dtype != torch.int64:
        raise ValueError(
            f"voxel_index must be int64 [{len(features)}], got {voxel_index.dtype} "
            f"{list(voxel_index.shape)}"
        )
    if not 0 <= num_voxels <= _MAX_VOXELS:
        raise ValueError(f"num_voxels must lie in [0, {_MAX_VOXELS}], got {num_voxels}")


@on_load
def _register() -> None:
    @torch.library.register_fake("opus::voxel_max")
    def _(
        features: Tensor, voxel_index: Tensor, num_voxels: int, with_winner: bool
    ) -> tuple[Tensor, Tensor]:
        channels = features.shape[1]
        return (
            features.new_empty((num_voxels, channels)),
            features.new_empty((num_voxels * with_winner, channels), dtype=torch.int64),
        )

    @torch.library.register_fake("opus::voxel_max_backward")
    def _(grad: Tensor, winner: Tensor, num_points: int) -> Tensor:
        return grad.new_empty((num_points, grad.shape[1]))

    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
        ctx.num_points = inputs[0].shape[0]
        ctx.mark_non_differentiable(output[1])
        ctx.save_for_backward(output[1])

    def backward(ctx: Any, grad: Tensor, _: Tensor) -> tuple[Any, ...]:
        (winner,) = ctx.saved_tensors
        return torch.ops.opus.voxel_max_backward(grad, winner, ctx.num_points), None, None, None

    torch.library.register_autograd("opus::voxel_max", backward, setup_context=setup_context)
