"""Exact nearest neighbours in 3-D.

Dimensions:
    N queries, M references.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ._extension import native, on_load

__all__ = ["nearest_neighbor", "nearest_neighbor_reference"]

# Distances the plain-torch twin holds at once.
_CHUNK_ELEMENTS = 1 << 24


def nearest_neighbor(query: Tensor, reference: Tensor) -> tuple[Tensor, Tensor]:
    """Index of and squared distance to the nearest reference point of each query.

    Squared distances are ``(dx * dx + dy * dy) + dz * dz`` in the dtype of the points. Of equally
    near references the lowest index wins. A distance that is not a number counts as infinite: a
    query with a NaN or infinity, or with no finite reference, gets index 0 and infinity.

    CPU tensors go through the native operation (a k-d tree over the references); CUDA tensors
    through the plain-torch twin. There is no gradient: callers gather the reference points.

    Args:
        query: [N, 3], float32 or float64.
        reference: [M, 3] with M >= 1, of the same dtype.

    Returns:
        Index, int64 [N], and squared distance [N], both without gradient.

    Raises:
        ValueError: a shape or dtype does not fit, or there is no reference point.
        ExtensionError: CPU tensors, and the native extension is not built.
    """
    if query.is_cuda:
        return nearest_neighbor_reference(query, reference)
    _check_arguments(query, reference)
    return native("nearest_neighbor")(query.detach(), reference.detach())


@torch.no_grad()
def nearest_neighbor_reference(query: Tensor, reference: Tensor) -> tuple[Tensor, Tensor]:
    """Plain-torch twin of :func:`nearest_neighbor`: all pairs, in chunks. Same arguments."""
    _check_arguments(query, reference)
    index = torch.empty(len(query), dtype=torch.int64, device=query.device)
    distance = torch.empty(len(query), dtype=query.dtype, device=query.device)
    chunk = max(1, _CHUNK_ELEMENTS // len(reference))
    rx, ry, rz = reference.unbind(-1)
    for start in range(0, len(query), chunk):
        x, y, z = query[start : start + chunk, :, None].unbind(1)
        squared = (x - rx).square() + (y - ry).square() + (z - rz).square()
        squared = torch.where(squared.isnan(), math.inf, squared)
        nearest = squared.argmin(dim=1)  # the first minimum
        index[start : start + chunk] = nearest
        distance[start : start + chunk] = squared.gather(1, nearest[:, None])[:, 0]
    return index, distance


def _check_arguments(query: Tensor, reference: Tensor) -> None:
    for name, value in (("query", query), ("reference", reference)):
        if value.dim() != 2 or value.shape[1] != 3:
            raise ValueError(f"{name} must be [n, 3], got {list(value.shape)}")
        if value.dtype not in (torch.float32, torch.float64):
            raise ValueError(f"{name} must be float32 or float64, got {value.dtype}")
    if query.dtype != reference.dtype:
        raise ValueError(
            f"query and reference must have one dtype, got {query.dtype} and {reference.dtype}"
        )
    if len(reference) == 0:
        raise ValueError("reference must hold at least one point, got none")


@on_load
def _register() -> None:
    @torch.library.register_fake("opus::nearest_neighbor")
    def _(query: Tensor, reference: Tensor) -> tuple[Tensor, Tensor]:
        return query.new_empty(query.shape[0], dtype=torch.int64), query.new_empty(query.shape[0])
