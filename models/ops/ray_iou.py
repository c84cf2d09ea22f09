"""Rays of RayIoU: class and depth of ray hits, and counts of agreement between two grids.

Liu et al., "Fully Sparse 3D Occupancy Prediction" (SparseOcc, arXiv 2312.17118).

The published tool's traversal defines the score: Amanatides & Woo, in double precision, with
running sums of crossing times. This module reproduces it operation by operation:

- A ray starts in the voxel of its origin, with coordinates truncated toward zero. An origin less
  than one voxel below a lower bound therefore counts as inside.
- Simultaneous crossings are ordered z, y, x.
- A ray visits at most 1,001 voxels, inside the grid and on the way to it, or X + Y + Z voxels if
  that is more.
- A ray that never enters the grid has the class of voxel (0, 0, 0) and a depth of minus one voxel.

Dimensions:
    B samples, X Y Z voxels along the axes, N ray origins of all samples, D directions, K classes
    (including free), H depth thresholds.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from ._extension import native, on_load, runs_natively

__all__ = [
    "LabelRays",
    "label_rays",
    "label_rays_reference",
    "ray_iou_counts",
    "ray_iou_counts_reference",
]

# Same bounds as in models/csrc/ray_iou/ray_iou.h, in voxels.
_MAX_VISITS = 1001
_FAR = float(1 << 30)


class LabelRays(NamedTuple):
    """Class and depth of ray hits.

    Attributes:
        label: uint8 [N, D], class of the first occupied voxel; the free label without a hit.
        depth_m: float32 [N, D], distance at which the ray leaves that voxel. Without a hit, the
            distance at which it leaves the grid. Minus one voxel if it misses the grid; 0 if the
            ray is invalid.
    """

    label: Tensor
    depth_m: Tensor


def label_rays(
    grids: Tensor,
    origins: Tensor,
    sample_of_origin: Tensor,
    directions: Tensor,
    grid_min: Sequence[float],
    voxel_size: float,
    empty_label: int,
) -> LabelRays:
    """Cast rays through the label grids of their samples.

    Starts and ends of rays are rounded to float32 in voxels, as in RayIoU's definition. A ray is
    invalid if its origin or direction is not finite, if its direction is zero, or if its sample
    does not exist. Invalid rays have the free label.

    Args:
        grids: uint8 [B, X, Y, Z].
        origins: float64 [N, 3], metres, in the frame of the grids.
        sample_of_origin: int64 [N], sample of each origin; rays are invalid outside 0 ... B - 1.
        directions: float32 [D, 3] unit vectors, the same for every origin.
        grid_min: lower corner of the grids (x, y, z), metres.
        voxel_size: edge length of the cubic voxels, metres.
        empty_label: label of empty voxels.

    Raises:
        ValueError: a shape, dtype or size does not fit.
        ExtensionError: the native extension is not built.
    """
    if not runs_natively("label_rays", grids):
        return label_rays_reference(
            grids, origins, sample_of_origin, directions, grid_min, voxel_size, empty_label
        )
    low, edge = [float(value) for value in grid_min], float(voxel_size)
    return LabelRays(
        *native("label_rays")(grids, origins, sample_of_origin, directions, low, edge, empty_label)
    )


def ray_iou_counts(
    pred: Tensor,
    gt: Tensor | LabelRays,
    origins: Tensor,
    sample_of_origin: Tensor,
    directions: Tensor,
    grid_min: Sequence[float],
    voxel_size: float,
    empty_label: int,
    num_classes: int,
    thresholds_m: Sequence[float],
) -> tuple[Tensor, LabelRays]:
    """Cast all rays of a batch through prediction and ground truth and count their agreement.

    Both grids are traversed together. Rays that are free in the ground truth are not scored; if
    `gt` holds rays, these are not cast either. Labels of `num_classes` and above are not counted.

    Args:
        pred: uint8 [B, X, Y, Z].
        gt: ground truth, uint8 [B, X, Y, Z], or its rays as returned by `label_rays` or an earlier
            call with the same rays.
        origins: see `label_rays`, also for the next four arguments.
        sample_of_origin: int64 [N].
        directions: float32 [D, 3].
        grid_min: metres.
        voxel_size: metres.
        empty_label: label of empty voxels.
        num_classes: K, 256 at most.
        thresholds_m: 1 to 8 depth tolerances, metres.

    Returns:
        Counts int64 [B, H + 2, K] by class, and the rays of the ground truth. Row h < H counts rays
        with equal classes whose depths differ by less than threshold h, row H the rays of the
        ground truth, row H + 1 the scored rays of the prediction.

    Raises:
        ValueError: a shape, dtype or size does not fit.
        ExtensionError: the native extension is not built.
    """
    if not runs_natively("ray_iou_counts", pred):
        return ray_iou_counts_reference(
            pred, gt, origins, sample_of_origin, directions, grid_min, voxel_size, empty_label,
            num_classes, thresholds_m,
        )  # fmt: skip
    cached = gt if isinstance(gt, LabelRays) else None
    counts, *rays = native("ray_iou_counts")(
        pred,
        None if cached else gt,
        origins,
        sample_of_origin,
        directions,
        [float(value) for value in grid_min],
        float(voxel_size),
        empty_label,
        num_classes,
        [float(value) for value in thresholds_m],
        cached.label if cached else None,
        cached.depth_m if cached else None,
    )
    return counts, cached or LabelRays(*rays)


def label_rays_reference(
    grids: Tensor,
    origins: Tensor,
    sample_of_origin: Tensor,
    directions: Tensor,
    grid_min: Sequence[float],
    voxel_size: float,
    empty_label: int,
) -> LabelRays:
    """Compute `label_rays` in plain torch (reference implementation)."""
    shape = (len(origins), len(directions))
    label = torch.full(shape, empty_label, dtype=torch.uint8, device=grids.device)
    depth_m = torch.zeros(shape, dtype=torch.float32, device=grids.device)
    low = torch.tensor(grid_min, dtype=torch.float64, device=grids.device)
    # Tensors, because torch may replace division by a number with multiplication by its inverse.
    edge = torch.full_like(low, voxel_size, dtype=torch.float32).double()
    for i, sample in enumerate(sample_of_origin.tolist()):
        if not 0 <= sample < len(grids):
            continue
        start = ((origins[i] - low) / edge).float().double()
        along = ((origins[i] + directions.double() - low) / edge).float().double() - start
        x, y, z = along.unbind(-1)
        along = along / _rounded_sqrt((x * x + y * y) + z * z)[:, None]
        is_finite = along.isfinite().all(-1) & start.isfinite().all()
        seen, t_exit = _walk(grids[sample], start.expand_as(along)[is_finite], along[is_finite],
                             empty_label)  # fmt: skip
        label[i, is_finite] = seen
        depth_m[i, is_finite] = t_exit * edge[0].float() + 0.0  # turns -0 into 0
    return LabelRays(label, depth_m)


def _rounded_sqrt(square: Tensor) -> Tensor:
    """Return the correctly rounded square root of float64 `[D]`.

    `torch.sqrt` is one ulp off for some numbers on CPUs where MKL computes it.
    """
    if square.device.type != "cpu":
        return square.sqrt()
    return torch.tensor([math.sqrt(number) for number in square.tolist()], dtype=torch.float64)


def _walk(
    grid: Tensor, start: Tensor, direction: Tensor, empty_label: int
) -> tuple[Tensor, Tensor]:
    """Trace R rays through one grid, one voxel per step for all rays.

    Args:
        grid: uint8 [X, Y, Z].
        start: float64 [R, 3], in voxels.
        direction: float64 [R, 3], of unit length.
        empty_label: label of empty voxels.

    Returns:
        Labels uint8 [R] and exit times float32 [R], in voxels.
    """
    size = torch.tensor(grid.shape, device=grid.device)
    voxel = start.clamp(-_FAR, _FAR).trunc().long()
    step = torch.where(direction >= 0, 1, -1)
    never = torch.full_like(start, torch.finfo(torch.float64).max)
    moves = direction != 0
    t = torch.where(moves, (voxel + (step > 0).long() - start) / direction, never)
    delta = torch.where(moves, step / direction, never)
    label = grid[0, 0, 0].expand(len(start)).clone()
    t_exit = torch.full_like(label, -1, dtype=torch.float32)
    was_inside = torch.zeros_like(label, dtype=torch.bool)
    walks = torch.ones_like(was_inside)
    for _ in range(max(_MAX_VISITS, sum(grid.shape))):
        inside = ((voxel >= 0) & (voxel < size)).all(-1) & walks
        lost = torch.where(step > 0, voxel >= size, voxel < 0).any(-1)
        walks = walks & (inside | ~(was_inside | lost))
        if not bool(walks.any()):
            break
        was_inside = was_inside | inside
        axis = torch.where(t[:, 0] < t[:, 1], 0, 1)[:, None]
        axis = torch.where(t.gather(1, axis)[:, 0] < t[:, 2], axis[:, 0], 2)[:, None]
        x, y, z = voxel[inside].unbind(-1)
        label[inside] = grid[x, y, z]
        t_exit[inside] = t.gather(1, axis)[inside, 0].float()
        walks = walks & ~(inside & (label != empty_label))
        voxel = voxel.scatter_add(1, axis, step.gather(1, axis))
        t = t.scatter_add(1, axis, delta.gather(1, axis))
    return label, t_exit


def ray_iou_counts_reference(
    pred: Tensor,
    gt: Tensor | LabelRays,
    origins: Tensor,
    sample_of_origin: Tensor,
    directions: Tensor,
    grid_min: Sequence[float],
    voxel_size: float,
    empty_label: int,
    num_classes: int,
    thresholds_m: Sequence[float],
) -> tuple[Tensor, LabelRays]:
    """Compute `ray_iou_counts` in plain torch (reference implementation)."""
    rays = (origins, sample_of_origin, directions, grid_min, voxel_size, empty_label)
    true = gt if isinstance(gt, LabelRays) else label_rays_reference(gt, *rays)
    found = label_rays_reference(pred, *rays)
    counts = torch.zeros(
        len(pred), len(thresholds_m) + 2, num_classes, dtype=torch.int64, device=pred.device
    )
    error = (found.depth_m - true.depth_m).abs()
    scored = true.label != empty_label
    known = (sample_of_origin >= 0) & (sample_of_origin < len(pred))
    scored = scored & known[:, None]
    sample = sample_of_origin[:, None].expand_as(scored)

    def add(row: int, label: Tensor, which: Tensor) -> None:
        label = label.long()  # the number 256 does not fit into uint8
        which = which & (label < num_classes)
        entry = sample[which] * num_classes + label[which]
        total = torch.bincount(entry, minlength=len(pred) * num_classes)
        counts[:, row] += total.view(len(pred), num_classes)

    for h, threshold in enumerate(thresholds_m):
        add(h, true.label, scored & (found.label == true.label) & (error < threshold))
    add(len(thresholds_m), true.label, scored)
    add(len(thresholds_m) + 1, found.label, scored)
    return counts, true


@on_load
def _register() -> None:
    @torch.library.register_fake("opus::label_rays")
    def _(
        grids: Tensor,
        origins: Tensor,
        sample_of_origin: Tensor,
        directions: Tensor,
        grid_min: list[float],
        voxel_size: float,
        empty_label: int,
    ) -> tuple[Tensor, Tensor]:
        shape = (origins.shape[0], directions.shape[0])
        return directions.new_empty(shape, dtype=torch.uint8), directions.new_empty(shape)

    @torch.library.register_fake("opus::ray_iou_counts")
    def _(
        pred: Tensor,
        gt: Tensor | None,
        origins: Tensor,
        sample_of_origin: Tensor,
        directions: Tensor,
        grid_min: list[float],
        voxel_size: float,
        empty_label: int,
        num_classes: int,
        thresholds: list[float],
        gt_label: Tensor | None,
        gt_depth: Tensor | None,
    ) -> tuple[Tensor, Tensor, Tensor]:
        shape = (origins.shape[0], directions.shape[0]) if gt is not None else (0, 0)
        counts = (pred.shape[0], len(thresholds) + 2, num_classes)
        return (
            origins.new_empty(counts, dtype=torch.int64),
            directions.new_empty(shape, dtype=torch.uint8),
            directions.new_empty(shape),
        )
