"""Exact nearest neighbours in 3-D.

Dimensions:
    B samples, N queries and M references of all samples.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from ._extension import native, on_load, runs_natively

__all__ = ["PointTree", "nearest_neighbor", "nearest_neighbor_reference"]

# Number of distances that the reference implementation stores at once.
_CHUNK_ELEMENTS = 1 << 24
# Bytes of a point and of a box, and points of a leaf, as in
# models/csrc/nearest_neighbor/nearest_neighbor.h. They determine the size of a tree.
_POINT_BYTES = {torch.float32: 16, torch.float64: 32}
_BOX_BYTES = {torch.float32: 32, torch.float64: 64}
_LEAF_POINTS = 10


class PointTree:
    """Search tree of points for repeated calls of `nearest_neighbor`, as references or queries.

    It holds a balanced tree of boxes for each sample. Building it takes about as long as 20,000
    queries, so use it for points that are searched more than once, such as the ground truth of all
    decoder layers. Build trees of both sets if each is searched in the other: queries in tree order
    share their searches.

    Args:
        points: [M, 3], float32 or float64; half precision is searched in float32.
        lengths: Number of points of each sample, in the order of `points`; None for one sample.

    Attributes:
        points: The points, [M, 3].
        lengths: Number of points of each sample.

    Raises:
        ValueError: a shape, dtype or length does not fit.
        ExtensionError: the native extension is not built.
    """

    def __init__(self, points: Tensor, lengths: Sequence[int] | None = None) -> None:
        self.points = _searched(points.detach())
        self.lengths = _lengths(points, lengths, "reference")
        self._memory: Tensor | None = None
        if runs_natively("point_tree", self.points):
            self._memory = native("point_tree")(self.points, self.lengths, False)

    def nearest(
        self, query: Tensor | PointTree, lengths: Sequence[int] | None = None
    ) -> tuple[Tensor, Tensor]:
        """Find nearest neighbours as `nearest_neighbor` does; `lengths` are the queries'."""
        points, lengths = _unprepared(query, lengths, "query")
        memory = query._memory if isinstance(query, PointTree) else None
        if self._memory is None or (isinstance(query, PointTree) and memory is None):
            return nearest_neighbor_reference(points, self, lengths)
        points = _searched(points.detach())
        _check_dtypes(points, self.points)
        query_lengths = _lengths(points, lengths, "query")
        _check_samples(query_lengths, self.lengths)
        if memory is None:
            return native("nearest_in_tree")(points, query_lengths, self._memory, self.lengths)
        return native("nearest_between_trees")(
            memory, query_lengths, self._memory, self.lengths, self.points.dtype
        )


def nearest_neighbor(
    query: Tensor | PointTree,
    reference: Tensor | PointTree,
    query_lengths: Sequence[int] | None = None,
    reference_lengths: Sequence[int] | None = None,
) -> tuple[Tensor, Tensor]:
    """Find the nearest reference point of each query: its index and squared distance.

    Squared distances are `(dx * dx + dy * dy) + dz * dz` in the dtype of the points. Ties go to the
    lowest index. A NaN distance is treated as infinite: for a non-finite query, or if there is no
    finite reference, the result is the first point of the sample with infinite distance.

    The results have no gradient; callers gather the reference points.

    Args:
        query: [N, 3], float32 or float64; float16 and bfloat16 are searched in float32. Or a
            `PointTree`, which makes the search several times faster if the tree is reused; results
            are in the order of its `points`.
        reference: [M, 3], same dtype, or a `PointTree`.
        query_lengths: Number of queries of each sample; None for one sample. Queries are searched
            only among references of the same sample. Leave it out for a `PointTree`.
        reference_lengths: The same for the references.

    Returns:
        Index into `reference`, int64 [N], and squared distance [N], both without gradient.

    Raises:
        ValueError: a shape, dtype or length does not fit, lengths are passed with a `PointTree`, or
            a sample with queries has no reference point.
        ExtensionError: the native extension is not built.
    """
    if isinstance(reference, PointTree):
        _unprepared(reference, reference_lengths, "reference")
    else:
        if isinstance(query, PointTree):
            reference = _searched(reference)
        own = _unprepared(query, query_lengths, "query")
        _check_arguments(*own, reference, reference_lengths)
        reference = PointTree(reference, reference_lengths)
    return reference.nearest(query, query_lengths)


@torch.no_grad()
def nearest_neighbor_reference(
    query: Tensor | PointTree,
    reference: Tensor | PointTree,
    query_lengths: Sequence[int] | None = None,
    reference_lengths: Sequence[int] | None = None,
) -> tuple[Tensor, Tensor]:
    """Compute `nearest_neighbor` from all pairs in plain torch (reference implementation)."""
    query, query_lengths = _unprepared(query, query_lengths, "query")
    reference, reference_lengths = _unprepared(reference, reference_lengths, "reference")
    _check_arguments(query, query_lengths, reference, reference_lengths)
    query, reference = _searched(query), _searched(reference)
    of_query = _lengths(query, query_lengths, "query")
    of_reference = _lengths(reference, reference_lengths, "reference")
    found, first = [], 0
    samples = zip(query.split(of_query), reference.split(of_reference), strict=True)
    for own_query, own_reference in samples:
        index, squared = _all_pairs(own_query, own_reference)
        found.append((index + first, squared))
        first += len(own_reference)
    indices, distances = zip(*found, strict=True)
    return torch.cat(indices), torch.cat(distances)


def _all_pairs(query: Tensor, reference: Tensor) -> tuple[Tensor, Tensor]:
    index = torch.empty(len(query), dtype=torch.int64, device=query.device)
    distance = torch.empty(len(query), dtype=query.dtype, device=query.device)
    chunk = max(1, _CHUNK_ELEMENTS // max(1, len(reference)))
    rx, ry, rz = reference.unbind(-1)
    for start in range(0, len(query), chunk):
        x, y, z = query[start : start + chunk, :, None].unbind(1)
        squared = (x - rx).square() + (y - ry).square() + (z - rz).square()
        squared = torch.where(squared.isnan(), math.inf, squared)
        least = squared.amin(dim=1, keepdim=True)
        # on CUDA, `squared.argmin()` may return any of several minima
        nearest = (squared == least).to(torch.uint8).argmax(dim=1)
        index[start : start + chunk] = nearest
        distance[start : start + chunk] = least[:, 0]
    return index, distance


def _searched(points: Tensor) -> Tensor:
    """Convert the points to the dtype of the search."""
    half = points.dtype in (torch.float16, torch.bfloat16)
    return points.float() if half else points


def _lengths(points: Tensor, lengths: Sequence[int] | None, name: str) -> list[int]:
    _check_points(points, name)
    result = [len(points)] if lengths is None else [int(length) for length in lengths]
    if sum(result) != len(points) or min(result, default=0) < 0:
        raise ValueError(
            f"lengths of {name} must be at least 0 and add up to {len(points)} points, got {result}"
        )
    return result


def _check_points(points: Tensor, name: str) -> None:
    if points.dim() != 2 or points.shape[1] != 3:
        raise ValueError(f"{name} must be [n, 3], got {list(points.shape)}")
    if not points.dtype.is_floating_point:
        raise ValueError(f"{name} must be of a floating-point type, got {points.dtype}")


def _check_dtypes(query: Tensor, reference: Tensor) -> None:
    if query.dtype != reference.dtype:
        raise ValueError(
            f"query and reference must have one dtype, got {query.dtype} and {reference.dtype}"
        )


def _check_samples(query_lengths: list[int], reference_lengths: list[int]) -> None:
    if len(query_lengths) != len(reference_lengths):
        raise ValueError(
            "query and reference must have the same number of samples, got "
            f"{len(query_lengths)} and {len(reference_lengths)}"
        )
    for i, (queries, references) in enumerate(zip(query_lengths, reference_lengths, strict=True)):
        if queries and not references:
            raise ValueError(
                f"reference must hold at least one point for the {queries} queries of sample {i}"
            )


def _unprepared(
    points: Tensor | PointTree, lengths: Sequence[int] | None, name: str
) -> tuple[Tensor, Sequence[int] | None]:
    if not isinstance(points, PointTree):
        return points, lengths
    if lengths is not None:
        raise ValueError(
            f"{name} is a PointTree, which stores its lengths: leave out {name}_lengths"
        )
    return points.points, points.lengths


def _check_arguments(
    query: Tensor,
    query_lengths: Sequence[int] | None,
    reference: Tensor,
    reference_lengths: Sequence[int] | None,
) -> None:
    own = _lengths(query, query_lengths, "query")
    others = _lengths(reference, reference_lengths, "reference")
    _check_dtypes(query, reference)
    _check_samples(own, others)


def _tree_bytes(dtype: torch.dtype, lengths: Sequence[int]) -> int:
    total = 0
    for length in lengths:
        depth = 0
        while _LEAF_POINTS << depth < length:
            depth += 1
        total += length * _POINT_BYTES[dtype] + ((2 << depth) - 1) * _BOX_BYTES[dtype]
    return total


@on_load
def _register() -> None:
    @torch.library.register_fake("opus::point_tree")
    def _(points: Tensor, lengths: list[int], along_curve: bool) -> Tensor:
        return points.new_empty(_tree_bytes(points.dtype, lengths), dtype=torch.uint8)

    @torch.library.register_fake("opus::nearest_in_tree")
    def _(
        query: Tensor, query_lengths: list[int], tree: Tensor, lengths: list[int]
    ) -> tuple[Tensor, Tensor]:
        return query.new_empty(query.shape[0], dtype=torch.int64), query.new_empty(query.shape[0])

    @torch.library.register_fake("opus::nearest_between_trees")
    def _(
        query: Tensor, query_lengths: list[int], tree: Tensor, lengths: list[int],
        dtype: torch.dtype,
    ) -> tuple[Tensor, Tensor]:  # fmt: skip
        queries = sum(query_lengths)
        return (
            query.new_empty(queries, dtype=torch.int64),
            query.new_empty(queries, dtype=dtype),
        )

    @torch.library.register_fake("opus::nearest_by_brute_force")
    def _(query: Tensor, reference: Tensor) -> tuple[Tensor, Tensor]:
        return query.new_empty(query.shape[0], dtype=torch.int64), query.new_empty(query.shape[0])
