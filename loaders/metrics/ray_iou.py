"""RayIoU: agreement of class and depth along simulated LiDAR rays (SparseOcc, arXiv 2312.17118).

Legend: X Y Z voxels, O ray origins, D directions, K semantic classes (free excluded), H thresholds.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from models.ops import OccupancyPyramid, ray_cast

DEPTH_THRESHOLDS_M = (1.0, 2.0, 4.0)
# Grid, origins, range, voxel size, free label -> class and depth of its rays.
CastOne = Callable[..., tuple[npt.NDArray[np.uint8], npt.NDArray[np.float32]]]
_NUM_AZIMUTHS = 360
# The lower beams of the simulated LiDAR hit flat ground at distances 1, 2, ... 10 sensor heights;
# above them the step between the last two is repeated up to this pitch.
_NUM_GROUND_RINGS = 10
_MAX_PITCH_RAD = 0.21


@lru_cache(maxsize=1)
def ray_directions() -> npt.NDArray[np.float32]:
    """Returns the unit directions of the simulated LiDAR: float32 [14040, 3], pitch-major.

    39 pitch angles from 45 degrees down to 0.21 rad or more up, times 360 azimuths from +x towards
    +y. The array is shared: do not write to it.
    """
    pitches = [-(math.pi / 2 - math.atan(k)) for k in range(1, _NUM_GROUND_RINGS + 1)]
    while pitches[-1] < _MAX_PITCH_RAD:
        pitches.append(2 * pitches[-1] - pitches[-2])
    pitch = np.array(pitches)[:, None]
    azimuth = np.radians(np.arange(_NUM_AZIMUTHS) * (360.0 / _NUM_AZIMUTHS))
    directions = np.stack(
        [
            np.cos(pitch) * np.cos(azimuth),
            np.cos(pitch) * np.sin(azimuth),
            np.broadcast_to(np.sin(pitch), (len(pitches), _NUM_AZIMUTHS)),
        ],
        axis=-1,
    )
    directions = directions.reshape(-1, 3).astype(np.float32)
    directions.setflags(write=False)
    return directions


def cast_label_rays(
    grids: Sequence[npt.NDArray[np.uint8]],
    origins: npt.NDArray[np.floating[Any]],
    pc_range: Sequence[float],
    voxel_size: Sequence[float],
    empty_label: int,
    wanted: npt.NDArray[np.bool_] | None = None,
) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.float32]]:
    """Casts the rays of :func:`ray_directions` from every origin through G label grids.

    Args:
        grids: G arrays uint8 [X, Y, Z] of one shape.
        origins: [O, 3] metres, in the frame of the grids.
        pc_range: (x0, y0, z0, x1, y1, z1) metres.
        voxel_size: Edge lengths of a voxel, metres; RayIoU is defined for cubes.
        empty_label: Class of a free voxel.
        wanted: bool [O * D], which rays to cast; None means all.

    Raises:
        ValueError: If the voxels are no cubes.

    Returns:
        Class uint8 [G, n] and depth float32 [G, n] of the n wanted rays (O * D if all are) in
        metres, origin-major. The depth is
        measured to where the ray leaves the first occupied voxel; without one, the class is free
        and the depth that of the last voxel inside the grid.
    """
    if len(set(map(float, voxel_size))) != 1:
        raise ValueError(f"RayIoU needs cubic voxels, got {tuple(voxel_size)} m")
    stacked = np.stack(grids)
    pyramid = OccupancyPyramid(torch.from_numpy(stacked), empty_label)
    grid_index = np.arange(len(grids))[:, None]
    labels, depths = [], []
    wanted_of = None if wanted is None else wanted.reshape(len(origins), -1)
    for i, origin in enumerate(np.asarray(origins, dtype=np.float64)):
        start, directions = _voxel_unit_rays(origin, pc_range, voxel_size)
        if wanted_of is not None:
            directions = directions[torch.from_numpy(wanted_of[i])]
        hits = ray_cast(pyramid, start[None], directions, (0, 0, 0), (1, 1, 1), empty_label)
        # In numpy: starting torch's threads costs more than these small steps. Rays that miss the
        # grid have index -1, which is harmless, for `hit` is false there.
        x, y, z = np.moveaxis(hits.voxel[:, 0].numpy(), -1, 0)
        label = stacked[grid_index, x, y, z]
        labels.append(np.where(hits.hit[:, 0].numpy(), label, empty_label))
        depths.append(hits.t_exit[:, 0].numpy() * float(voxel_size[0]))
    if not labels:
        empty = np.zeros((len(grids), 0))
        return empty.astype(np.uint8), empty.astype(np.float32)
    return (
        np.concatenate(labels, axis=1).astype(np.uint8),
        np.concatenate(depths, axis=1).astype(np.float32),
    )


def _voxel_unit_rays(
    origin: npt.NDArray[np.float64], pc_range: Sequence[float], voxel_size: Sequence[float]
) -> tuple[torch.Tensor, torch.Tensor]:
    """Returns the origin [3] and unit directions [D, 3] of its rays in voxels, float32.

    RayIoU's definition passes start and end points of rays in single precision, in voxels. Rays
    that graze a voxel's corner turn on that rounding, so it is repeated here step by step.
    """
    low = np.asarray(pc_range[:3], dtype=np.float64)
    edge = np.asarray(voxel_size, dtype=np.float32).astype(np.float64)
    start = ((origin - low) / edge).astype(np.float32)
    end = ((origin + ray_directions().astype(np.float64) - low) / edge).astype(np.float32)
    directions = end - start
    directions /= np.sqrt(np.einsum("ij,ij->i", directions, directions))[:, None]
    return torch.from_numpy(start), torch.from_numpy(directions)


@dataclass
class RayCounts:
    """Numbers of rays; ``a + b`` adds them.

    Attributes:
        hit: int64 [H, K], class agrees and depth differs by less than threshold h.
        gt: int64 [K], rays whose ground truth is class k.
        pred: int64 [K], scored rays (ground truth not free) whose prediction is class k.
    """

    hit: npt.NDArray[np.int64]
    gt: npt.NDArray[np.int64]
    pred: npt.NDArray[np.int64]

    def __add__(self, other: RayCounts) -> RayCounts:
        return RayCounts(self.hit + other.hit, self.gt + other.gt, self.pred + other.pred)


@dataclass(frozen=True)
class RayScores:
    """Scores in percent.

    Attributes:
        mean: RayIoU, the mean over the thresholds.
        per_threshold: float64 [H], mean over the classes that occur on scored rays (in the ground
            truth or in the prediction).
        per_class: float64 [H, K]; NaN for a class that occurs in neither.
    """

    mean: float
    per_threshold: npt.NDArray[np.float64]
    per_class: npt.NDArray[np.float64]


def ray_counts(
    label: npt.NDArray[np.uint8],
    depth_m: npt.NDArray[np.floating[Any]],
    num_classes: int,
    empty_label: int,
    thresholds_m: Sequence[float] = DEPTH_THRESHOLDS_M,
) -> RayCounts:
    """Counts agreement of predicted and true rays.

    Args:
        label: uint8 [2, n], prediction first, ground truth second (see :func:`cast_label_rays`).
        depth_m: [2, n].
        num_classes: K + 1, free included.
        empty_label: Class whose ground-truth rays are not scored.
        thresholds_m: H depth tolerances.
    """
    scored = label[1] != empty_label
    pred, gt = label[0][scored], label[1][scored]
    error = np.abs(depth_m[0][scored] - depth_m[1][scored])
    agree = pred == gt

    def count(labels: npt.NDArray[np.uint8]) -> npt.NDArray[np.int64]:
        return np.delete(np.bincount(labels, minlength=num_classes), empty_label).astype(np.int64)

    hit = np.stack([count(gt[agree & (error < limit)]) for limit in thresholds_m])
    return RayCounts(hit, count(gt), count(pred))


def ray_scores(counts: RayCounts) -> RayScores:
    """Turns summed counts into scores; RayIoU averages classes first, thresholds second."""
    union = counts.gt + counts.pred - counts.hit
    with np.errstate(invalid="ignore"):
        per_class = np.where(union > 0, 100.0 * counts.hit / union, np.nan)
    present = ~np.isnan(per_class)
    per_threshold = np.array(
        [row[ok].mean() if ok.any() else np.nan for row, ok in zip(per_class, present, strict=True)]
    )
    return RayScores(float(per_threshold.mean()), per_threshold, per_class)


def sample_ray_counts(
    pred: npt.NDArray[np.uint8],
    gt: npt.NDArray[np.uint8],
    origins: npt.NDArray[np.floating[Any]],
    pc_range: Sequence[float],
    voxel_size: Sequence[float],
    num_classes: int,
    empty_label: int,
    cast_gt: CastOne | None = None,
) -> RayCounts:
    """Casts rays through prediction and ground truth [X, Y, Z] of one sample and counts.

    Args:
        pred: uint8 [X, Y, Z].
        gt: uint8 [X, Y, Z].
        origins: [O, 3] metres.
        pc_range: Of the grids.
        voxel_size: Of the grids.
        num_classes: K + 1, free included.
        empty_label: Class of a free voxel.
        cast_gt: Casts the rays of the ground truth, see :class:`.ray_cache.RayCache`.

    Raises:
        ValueError: If the two grids differ in shape.
    """
    if pred.shape != gt.shape:
        raise ValueError(f"prediction {pred.shape} and ground truth {gt.shape} differ in shape")
    settings = (origins, pc_range, voxel_size, empty_label)
    gt_label, gt_depth = (cast_gt or _cast_one)(gt, *settings)
    # Rays that are free in the ground truth are not scored.
    scored = gt_label != empty_label
    pred_label, pred_depth = cast_label_rays([pred], *settings, wanted=scored)
    label = np.stack([pred_label[0], gt_label[scored]])
    depth_m = np.stack([pred_depth[0], gt_depth[scored]])
    return ray_counts(label, depth_m, num_classes, empty_label)


def _cast_one(
    grid: npt.NDArray[np.uint8], *settings: Any
) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.float32]]:
    label, depth_m = cast_label_rays([grid], *settings)
    return label[0], depth_m[0]


def ray_iou(
    preds: Sequence[npt.NDArray[np.uint8]],
    gts: Sequence[npt.NDArray[np.uint8]],
    origins: Sequence[npt.NDArray[np.floating[Any]]],
    pc_range: Sequence[float],
    voxel_size: Sequence[float],
    num_classes: int,
    empty_label: int,
) -> RayScores:
    """Scores a list of samples at once (grids uint8 [X, Y, Z], origins [O_i, 3] metres)."""
    if not len(preds) == len(gts) == len(origins) or not len(preds):
        raise ValueError("ray_iou needs as many predictions as ground truths and origins, >= 1")
    per_sample = [
        sample_ray_counts(pred, gt, origin, pc_range, voxel_size, num_classes, empty_label)
        for pred, gt, origin in zip(preds, gts, origins, strict=True)
    ]
    return ray_scores(sum(per_sample[1:], start=per_sample[0]))
