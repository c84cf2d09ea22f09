"""Farthest-point sampling in 3-D.

Dimensions:
    N points, S samples.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ._extension import native, on_load

__all__ = ["farthest_point_sampling", "farthest_point_sampling_reference"]


def farthest_point_sampling(points: Tensor, num_samples: int) -> Tensor:
    """Indices of points that are each as far as can be from those before.

    The first is point 0. Squared distances are ``(dx * dx + dy * dy) + dz * dz`` in the dtype of
    the points; of equally far points the lowest index wins. When all points are taken, indices
    repeat. Points with a NaN or infinity are taken by no one but the start.

    CPU tensors go through the native operation; CUDA tensors through the plain-torch twin.

    Args:
        points: [N, 3] with N >= 1, float32 or float64.
        num_samples: S.

    Returns:
        int64 [S].

    Raises:
        ValueError: a shape, dtype or number does not fit.
        ExtensionError: CPU tensors, and the native extension is not built.
    """
    if points.is_cuda:
        return farthest_point_sampling_reference(points, num_samples)
    _check_arguments(points, num_samples)
    return native("farthest_point_sampling")(points.detach(), num_samples)


@torch.no_grad()
def farthest_point_sampling_reference(points: Tensor, num_samples: int) -> Tensor:
    """Plain-torch twin of :func:`farthest_point_sampling`. Same arguments."""
    _check_arguments(points, num_samples)
    index = torch.zeros(num_samples, dtype=torch.int64, device=points.device)
    finite = points.isfinite().all(1)
    nearest = torch.where(finite, math.inf, -math.inf).to(points.dtype)
    x, y, z = points.unbind(1)
    for i in range(1, num_samples):
        px, py, pz = points[index[i - 1]].unbind()
        squared = (x - px).square() + (y - py).square() + (z - pz).square()
        nearest = torch.where(squared < nearest, squared, nearest)
        # argmax alone may return any of several maxima on CUDA
        index[i] = (nearest == nearest.max()).to(torch.uint8).argmax()
    return index


def _check_arguments(points: Tensor, num_samples: int) -> None:
    if points.dim() != 2 or points.shape[1] != 3 or len(points) == 0:
        raise ValueError(f"points must be [n, 3] with n >= 1, got {list(points.shape)}")
    if points.dtype not in (torch.float32, torch.float64):
        raise ValueError(f"points must be float32 or float64, got {points.dtype}")
    if num_samples < 0:
        raise ValueError(f"num_samples must be at least 0, got {num_samples}")


@on_load
def _register() -> None:
    @torch.library.register_fake("opus::farthest_point_sampling")
    def _(points: Tensor, num_samples: int) -> Tensor:
        return points.new_empty(num_samples, dtype=torch.int64)
