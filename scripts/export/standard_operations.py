"""The operations of `models.ops`, expressed with standard operators.

The functions have the names, arguments and, up to rounding, the results of the operations that they
replace, for one sample in evaluation. They are built from operators that ONNX has since opset 18:
`GridSample` reads images, `ScatterElements` with the reduction `max` groups points by voxel,
`NonZero` lists voxels, `Gather` finds the neighbours of a voxel in a dense grid of indices.
Operations without a function here are traced through their plain-torch reference implementations.

Dimension letters: T frames, N cameras, L pyramid levels, C channels, h, w size of a map, Q queries,
G groups, P points of a group, c = C / G, S = Q * G * P, n points or voxels, m voxels, K kernel
positions.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any
from unittest import mock

import torch
import torch.nn.functional as F
from torch import Tensor
from torch._higher_order_ops import scan

from models import ops
from models.heads import point_head, query_starts
from models.ops.multi_view_sampling import project_to_frames
from scripts.runtime.operations import replaced_operations

Triple = tuple[int, int, int]

# Outside every map, in the coordinates of GridSample (the map is [-1, 1]).
_OUTSIDE = -4.0
# Channels that a sparse convolution gathers for a voxel at once: few operators against memory.
_GATHERED_CHANNELS = 256


@contextmanager
def standard_operations() -> Iterator[None]:
    """Replace the operations of the models by the functions of this module."""
    replacements: Mapping[str, Callable[..., Any]] = dict(
        adaptive_mixing=ops.adaptive_mixing_reference,
        build_kernel_map=build_kernel_map,
        distance_attention=ops.distance_attention_reference,
        farthest_point_sampling=farthest_point_sampling,
        multi_view_sampling=multi_view_sampling,
        sparse_conv=sparse_conv,
        unique_voxels=unique_voxels,
        voxel_max=voxel_max,
    )
    with (
        replaced_operations(replacements),
        mock.patch.object(point_head, "closing", closing),
        mock.patch.object(query_starts, "farthest_first", farthest_first),
        mock.patch.object(
            torch, "cdist", _distances
        ),  # in the reference implementation of the attention
    ):
        yield


def stack_cameras(level: Tensor, num_cams: int) -> Tensor:
    """Stack the maps of a frame's cameras vertically, with a row of zeros below each.

    One two-dimensional `GridSample` can then read any camera, without mixing across borders.

    Args:
        level: `[T*N, C, h, w]`.
        num_cams: N.

    Returns:
        `[T, C, N * (h + 1), w]`.
    """
    padded = F.pad(level, (0, 0, 0, 1)).unflatten(0, (-1, num_cams))
    return padded.transpose(1, 2).flatten(2, 3)


def unstack_cameras(level: Tensor, num_cams: int) -> Tensor:
    """Return the maps `[T, N, C, h, w]` in a result of `stack_cameras`."""
    return level.unflatten(2, (num_cams, -1))[:, :, :, :-1].transpose(1, 2)


def multi_view_sampling(
    feats: Sequence[Tensor],
    points: Tensor,
    occ2img: Tensor,
    level_weights: Tensor,
    img_hw: tuple[int, int],
    num_cams: int,
    pairing: str = "published",
) -> Tensor:
    """Sample maps from `stack_cameras`.

    Args:
        feats: L maps `[T, C, N * (h + 1), w]`.
        points: `[1, Q, G, P, 3]`, metres.
        occ2img: `[1, T*N, 4, 4]`.
        level_weights: `[1, Q, G, P, L]`.
        img_hw: Height and width of the images that `occ2img` refers to.
        num_cams: N.
        pairing: See `models.ops.multi_view_sampling`.

    Returns:
        `[1, Q, G, T*P, c]`.
    """
    _, Q, G, P, _ = points.shape
    T = occ2img.shape[1] // num_cams
    flat = points.reshape(1, Q * G * P, 3)
    camera, pixel, finite = project_to_frames(flat, occ2img, img_hw, num_cams)
    frames, groups = torch.arange(T), torch.arange(G)
    paired = (frames[:, None] * G + groups) // T if pairing == "published" else groups.expand(T, G)

    def by_group(values: Tensor) -> Tensor:  # [1, T, S] -> [T*G, Q, P]
        return values.view(T, Q, G, P).transpose(1, 2).flatten(0, 1)

    by_point = level_weights[0].permute(1, 0, 2, 3)
    weights = by_point.index_select(0, paired.flatten())  # [T*G, Q, P, L]
    u, v, camera, finite = map(by_group, (*pixel.unbind(-1), camera, finite))
    x = (2 * u / img_hw[1] - 1).clamp(_OUTSIDE, -_OUTSIDE)
    out: Tensor | None = None
    for index, feat in enumerate(feats):
        rows = feat.shape[2]
        h = rows // num_cams - 1
        row = v / img_hw[0] * (h - 1)
        inside = finite & (row > -1) & (row < h)
        y = torch.where(inside, 2 * (camera * (h + 1) + row) / (rows - 1) - 1, _OUTSIDE)
        groups_of_maps = feat.unflatten(1, (G, -1)).flatten(0, 1)  # [T*G, c, rows, w]
        read = F.grid_sample(groups_of_maps, torch.stack([x, y], -1), align_corners=True)
        weighted = read * weights[:, None, ..., index]
        out = weighted if out is None else out + weighted
    assert out is not None
    # [T*G, c, Q, P] -> [1, Q, G, T*P, c]
    return out.unflatten(0, (T, G)).permute(3, 1, 0, 4, 2).flatten(2, 3).unsqueeze(0)


def unique_voxels(keys: Tensor, num_keys: int) -> tuple[Tensor, Tensor]:
    """Return the voxels of points and the voxel index of every point, over a dense grid."""
    unique = _marked(keys, num_keys)
    number = torch.zeros(num_keys, dtype=torch.int32)
    number = number.scatter(0, unique, torch.arange(unique.shape[0], dtype=torch.int32))
    return unique, _rows(number, keys).long()


def voxel_max(features: Tensor, voxel_index: Tensor, num_voxels: int) -> Tensor:
    """Return the maximum over the points of each voxel; every voxel has a point."""
    lowest = features.new_full((num_voxels, features.shape[1]), -math.inf)
    target = voxel_index[:, None].expand(-1, features.shape[1])
    return lowest.scatter_reduce(0, target, features, "amax")


@dataclass(frozen=True)
class NeighbourMap:
    """The input voxels that every output voxel of a sparse convolution reads.

    Attributes:
        out_coords: int64 `[m, 4]`, (0, d0, d1, d2).
        neighbours: int64 `[m, K]`, rows of the input, n if there is no voxel.
    """

    out_coords: Tensor
    neighbours: Tensor


def build_kernel_map(
    coords: Tensor,
    spatial_shape: Triple,
    kernel_size: Triple,
    stride: Triple = (1, 1, 1),
    padding: Triple = (0, 0, 0),
    subm: bool = False,
) -> NeighbourMap:
    """Find the neighbours with a dense grid of indices, padded so that all lie inside."""
    pad = tuple(size // 2 for size in kernel_size) if subm else padding
    step = (1, 1, 1) if subm else stride
    extents = tuple(size + 2 * more for size, more in zip(spatial_shape, pad, strict=True))
    own = coords[:, 1:] + torch.tensor(pad)
    offsets = torch.tensor(list(itertools.product(*map(range, kernel_size))))  # [K, 3]
    if subm:
        out_coords, corner = coords, coords[:, 1:]
    else:
        out_shape = tuple(
            (extent - kernel) // by + 1
            for extent, kernel, by in zip(extents, kernel_size, step, strict=True)
        )
        out = _reached(own, offsets, torch.tensor(step), out_shape)
        corner = out * torch.tensor(step)
        out_coords = F.pad(out, (1, 0))
    total = math.prod(extents)
    missing = coords.shape[0]
    index = torch.full((total,), missing, dtype=torch.int32)
    index = index.scatter(0, _linear(own, extents), torch.arange(missing, dtype=torch.int32))
    places = _linear(corner, extents)[:, None] + _linear(offsets, extents)
    return NeighbourMap(out_coords, _rows(index, places).long())


def sparse_conv(
    features: Tensor, weight: Tensor, bias: Tensor | None, kernel_map: NeighbourMap
) -> Tensor:
    """Multiply gathered neighbours by the weights, a few kernel positions at a time."""
    padded = torch.cat([features, features.new_zeros(1, features.shape[1])])
    positions = weight.flatten(1, 3).permute(1, 2, 0)  # [K, C_in, C_out]
    at_once = max(1, _GATHERED_CHANNELS // features.shape[1])
    out: Tensor | None = bias
    for start in range(0, positions.shape[0], at_once):
        read = _rows(padded, kernel_map.neighbours[:, start : start + at_once]).flatten(1)
        product = read @ positions[start : start + at_once].flatten(0, 1)
        out = product if out is None else out + product
    assert out is not None
    return out


def farthest_point_sampling(points: Tensor, num_samples: int) -> Tensor:
    """Take the farthest point repeatedly, in a scan."""

    def step(state: tuple[Tensor, Tensor], _: Tensor) -> tuple[tuple[Tensor, Tensor], Tensor]:
        nearest, last = state
        delta = (points - points[last]).square()
        squared = delta[:, 0] + delta[:, 1] + delta[:, 2]
        nearest = torch.where(squared < nearest, squared, nearest)  # not if NaN
        return (nearest, nearest.argmax(0, keepdim=True)), last.clone()

    largest = torch.finfo(points.dtype).max
    finite = (points - points == 0).all(1)
    nearest = torch.full_like(points[:, 0], largest).masked_fill(~finite, -largest)
    start = (nearest, torch.zeros(1, dtype=torch.int64))
    _, index = scan(step, start, torch.zeros(num_samples))
    return index[:, 0]


def farthest_first(points: Tensor, others: Tensor) -> Tensor:
    """Rank points with `TopK`, which sorts equal values by their index."""
    nearest = _distances(points[None], others[None])[0].amin(1)
    return nearest.topk(nearest.shape[0]).indices


def closing(volume: Tensor) -> Tensor:
    """Close `[K, X, Y, Z]` with a 3 x 3 x 3 window, by max-pooling."""
    return -_largest_around(-_largest_around(volume[None]))[0]


def _largest_around(volume: Tensor) -> Tensor:
    for axis in range(3):
        kernel = [3 if other == axis else 1 for other in range(3)]
        volume = F.max_pool3d(volume, kernel, 1, [size // 2 for size in kernel])
    return volume


def _distances(a: Tensor, b: Tensor, **_: Any) -> Tensor:
    """Return `[B, n, m]`, distances between points `[B, n, 3]` and `[B, m, 3]`."""
    squared: Tensor | None = None
    for here, there in zip(a.unbind(-1), b.unbind(-1), strict=True):
        term = (here[..., :, None] - there[..., None, :]).square()
        squared = term if squared is None else squared + term
    assert squared is not None
    return squared.sqrt()


def _rows(table: Tensor, index: Tensor) -> Tensor:
    """Return the rows of a table ``[n, ...]`` at ``index``, by `Gather` along the first axis."""
    return table.index_select(0, index.flatten()).view(*index.shape, *table.shape[1:])


def _marked(keys: Tensor, num_keys: int) -> Tensor:
    """Return the distinct values in `keys` below `num_keys`, ascending."""
    grid = torch.zeros(num_keys + 1)
    marks = torch.ones_like(keys, dtype=grid.dtype)
    found = grid.scatter_reduce(0, keys, marks, "amax")[:num_keys].nonzero()[:, 0]
    torch._check(found.shape[0] > 0)  # for the trace: sets of voxels are not empty
    return found


def _reached(own: Tensor, offsets: Tensor, step: Tensor, out_shape: Sequence[int]) -> Tensor:
    """Return the output voxels `[m, 3]` whose windows contain a voxel of `own` `[n, 3]`."""
    shifted = own[:, None] - offsets  # [n, K, 3]
    out = shifted // step
    upper = torch.tensor(out_shape)
    reaches = ((shifted == out * step) & (shifted >= 0) & (out < upper)).all(-1)
    total = math.prod(out_shape)
    keys = _marked(torch.where(reaches, _linear(out, out_shape), total).flatten(), total)
    rest, d2 = keys // out_shape[2], keys % out_shape[2]
    return torch.stack([rest // out_shape[1], rest % out_shape[1], d2], 1)


def _linear(coords: Tensor, shape: Sequence[int]) -> Tensor:
    d0, d1, d2 = coords.unbind(-1)
    return (d0 * shape[1] + d1) * shape[2] + d2
