"""Farthest-point sampling in 3-D.

Dimensions:
    N points of all clouds, B clouds, S samples of a cloud.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from ._extension import native, on_load, runs_natively

__all__ = ["farthest_point_sampling", "farthest_point_sampling_reference"]


def farthest_point_sampling(
    points: Tensor, num_samples: int, lengths: Sequence[int] | None = None
) -> Tensor:
    """Select points greedily, each farthest from those already selected; return their indices.

    The first point is point 0. Squared distances are `(dx * dx + dy * dy) + dz * dz` in the dtype
    of the points; ties go to the lowest index. Once all points are selected, indices repeat. A
    non-finite point is only selected if it is point 0.

    Args:
        points: [N, 3], float32 or float64; float16 and bfloat16 are measured in float32.
        num_samples: S.
        lengths: Points of each cloud, at least 1, in the order of `points`; None for one cloud.

    Returns:
        int64 [S], or with `lengths` [B, S], indices within the cloud.

    Raises:
        ValueError: a shape, dtype or number does not fit.
        ExtensionError: the native extension is not built.
    """
    own = _check_arguments(points, num_samples, lengths)
    if not runs_natively("farthest_point_sampling", points):
        return farthest_point_sampling_reference(points, num_samples, lengths)
    index = native("farthest_point_sampling")(_measured(points), own, num_samples)
    return index[0] if lengths is None else index


@torch.no_grad()
def farthest_point_sampling_reference(
    points: Tensor, num_samples: int, lengths: Sequence[int] | None = None
) -> Tensor:
    """Compute `farthest_point_sampling` in plain torch (reference implementation)."""
    own = _check_arguments(points, num_samples, lengths)
    clouds = _measured(points).split(own)
    if not clouds:
        return torch.zeros(0, num_samples, dtype=torch.int64, device=points.device)
    index = torch.stack([_sample(cloud, num_samples) for cloud in clouds])
    return index[0] if lengths is None else index


def _sample(points: Tensor, num_samples: int) -> Tensor:
    index = torch.zeros(num_samples, dtype=torch.int64, device=points.device)
    finite = points.isfinite().all(1)
    nearest = torch.where(finite, math.inf, -math.inf).to(points.dtype)
    x, y, z = points.unbind(1)
    for i in range(1, num_samples):
        px, py, pz = points[index[i - 1]].unbind()
        squared = (x - px).square() + (y - py).square() + (z - pz).square()
        nearest = torch.where(squared < nearest, squared, nearest)
        # on CUDA, `nearest.argmax()` may return any of several maxima
        index[i] = (nearest == nearest.max()).to(torch.uint8).argmax()
    return index


def _measured(points: Tensor) -> Tensor:
    half = points.dtype in (torch.float16, torch.bfloat16)
    return (points.float() if half else points).detach()


def _check_arguments(points: Tensor, num_samples: int, lengths: Sequence[int] | None) -> list[int]:
    if points.dim() != 2 or points.shape[1] != 3 or (lengths is None and len(points) == 0):
        raise ValueError(f"points must be [n, 3] with n >= 1, got {list(points.shape)}")
    if not points.dtype.is_floating_point:
        raise ValueError(f"points must be of a floating-point type, got {points.dtype}")
    if num_samples < 0:
        raise ValueError(f"num_samples must be at least 0, got {num_samples}")
    own = [len(points)] if lengths is None else [int(length) for length in lengths]
    if sum(own) != len(points) or min(own, default=1) < 1:
        raise ValueError(
            f"lengths must be at least 1 and add up to {len(points)} points, got {own}"
        )
    return own


@on_load
def _register() -> None:
    @torch.library.register_fake("opus::farthest_point_sampling")
    def _(points: Tensor, lengths: list[int], num_samples: int) -> Tensor:
        return points.new_empty((len(lengths), num_samples), dtype=torch.int64)
