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

from loaders.errors import LoaderConfigError
from loaders.metrics.occupancy import mean_of_known
from loaders.sample import UNKNOWN_LABEL
from models.ops import LabelRays, label_rays, ray_iou_counts

DEPTH_THRESHOLDS_M = (1.0, 2.0, 4.0)
# Grid, origins, range, voxel size, free label -> class and depth of its rays.
CastOne = Callable[..., tuple[npt.NDArray[np.uint8], npt.NDArray[np.float32]]]
# Samples per call: enough to use all threads, few enough for the memory.
_BATCH = 16
_NUM_AZIMUTHS = 360
# The lower beams of the simulated LiDAR hit flat ground at distances 1, 2, ... 10 sensor heights.
# Above them, the last pitch step is repeated up to this pitch.
_NUM_GROUND_RINGS = 10
_MAX_PITCH_RAD = 0.21


@lru_cache(maxsize=1)
def ray_directions() -> npt.NDArray[np.float32]:
    """Return the unit directions of the simulated LiDAR: float32 [14040, 3], pitch-major.

    There are 39 pitch angles, from 45 degrees down to at least 0.21 rad up, and 360 azimuths, from
    +x towards +y. The array is shared: do not write to it.
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


@lru_cache(maxsize=1)
def _directions() -> torch.Tensor:
    return torch.from_numpy(ray_directions().copy())


def cast_label_rays(
    grids: Sequence[npt.NDArray[np.uint8]],
    origins: npt.NDArray[np.floating[Any]],
    pc_range: Sequence[float],
    voxel_size: Sequence[float],
    empty_label: int,
) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.float32]]:
    """Cast the rays of `ray_directions` from every origin through G label grids.

    Args:
        grids: G arrays uint8 [X, Y, Z] of one shape.
        origins: [O, 3] metres, in the frame of the grids.
        pc_range: (x0, y0, z0, x1, y1, z1) metres.
        voxel_size: Edge lengths of a voxel, metres; RayIoU is defined for cubes.
        empty_label: Class of a free voxel.

    Raises:
        LoaderConfigError: If the voxels are not cubes.

    Returns:
        Class uint8 [G, O * D] and depth float32 [G, O * D] in metres, origin-major. The depth is
        the distance at which the ray leaves the first occupied voxel. If no voxel is occupied, the
        class is free and the ray ends at the last voxel inside the grid.
    """
    batch = _origins([origins] * len(grids))
    rays = label_rays(
        torch.from_numpy(np.stack(grids)),
        *batch,
        _directions(),
        list(map(float, pc_range[:3])),
        voxel_edge_m(voxel_size),
        empty_label,
    )
    shape = (len(grids), len(origins) * len(ray_directions()))
    return rays.label.numpy().reshape(shape), rays.depth_m.numpy().reshape(shape)


def voxel_edge_m(voxel_size: Sequence[float]) -> float:
    """Return the edge of a voxel in metres.

    Raises:
        LoaderConfigError: If the voxels are not cubes; RayIoU is not defined for others.
    """
    if len(set(map(float, voxel_size))) != 1:
        raise LoaderConfigError(
            f"RayIoU needs cubic voxels, got voxel_size {tuple(map(float, voxel_size))} m: remove "
            "RayIoUMetric from val_evaluator and test_evaluator, or choose cubic voxels"
        )
    return float(voxel_size[0])


def _origins(
    origins: Sequence[npt.NDArray[np.floating[Any]]],
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return all origins [N, 3] and the sample index of each [N]."""
    samples = np.repeat(np.arange(len(origins)), [len(own) for own in origins])
    packed = np.concatenate([np.asarray(own, dtype=np.float64).reshape(-1, 3) for own in origins])
    return torch.from_numpy(packed), torch.from_numpy(samples)


@dataclass
class RayCounts:
    """Numbers of rays; `a + b` adds them.

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


def ray_scores(counts: RayCounts) -> RayScores:
    """Convert summed counts to scores."""
    hit = counts.hit.astype(np.float64)
    union = counts.gt + counts.pred - hit
    iou: npt.NDArray[np.float64] = np.full(hit.shape, np.nan)
    np.divide(hit, union, out=iou, where=union > 0)
    per_threshold = np.array([mean_of_known(row) * 100 for row in iou])
    return RayScores(mean_of_known(iou) * 100, per_threshold, iou * 100)


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
    """Cast rays through prediction and ground truth [X, Y, Z] of one sample and count.

    Args:
        pred: uint8 [X, Y, Z].
        gt: uint8 [X, Y, Z]. A ray is not scored if its first voxel that is not free has an unknown
            state (`UNKNOWN_LABEL`).
        origins: [O, 3] metres.
        pc_range: Range of the grids.
        voxel_size: Voxel size of the grids.
        num_classes: K + 1, free included.
        empty_label: Class of a free voxel.
        cast_gt: Casts the rays of the ground truth, see `.ray_cache.RayCache`.

    Raises:
        ValueError: If the two grids differ in shape.
    """
    return batch_ray_counts(
        [pred], [gt], [origins], pc_range, voxel_size, num_classes, empty_label, cast_gt
    )


def batch_ray_counts(
    preds: Sequence[npt.NDArray[np.uint8]],
    gts: Sequence[npt.NDArray[np.uint8]],
    origins: Sequence[npt.NDArray[np.floating[Any]]],
    pc_range: Sequence[float],
    voxel_size: Sequence[float],
    num_classes: int,
    empty_label: int,
    cast_gt: CastOne | None = None,
) -> RayCounts:
    """Return the summed counts of several samples, cast in one call; see `sample_ray_counts`."""
    for pred, gt in zip(preds, gts, strict=True):
        if pred.shape != gt.shape:
            raise ValueError(f"prediction {pred.shape} and ground truth {gt.shape} differ in shape")
    packed, sample_of_origin = _origins(origins)
    if cast_gt is None and not any((gt == UNKNOWN_LABEL).any() for gt in gts):
        truth: torch.Tensor | LabelRays = torch.from_numpy(np.stack(gts))
    else:
        settings = (pc_range, voxel_size, empty_label)
        rays = [
            _without_unknown(*(cast_gt or _cast_one)(gt, starts, *settings), empty_label)
            for gt, starts in zip(gts, origins, strict=True)
        ]
        columns = (np.concatenate(column) for column in zip(*rays, strict=True))
        shape = (len(packed), len(ray_directions()))
        truth = LabelRays(*(torch.from_numpy(column).reshape(shape) for column in columns))
    counts, _ = ray_iou_counts(
        torch.from_numpy(np.stack(preds)),
        truth,
        packed,
        sample_of_origin,
        _directions(),
        list(map(float, pc_range[:3])),
        voxel_edge_m(voxel_size),
        empty_label,
        num_classes,
        DEPTH_THRESHOLDS_M,
    )
    total = np.delete(counts.sum(0).numpy(), empty_label, axis=1)
    return RayCounts(total[:-2], total[-2], total[-1])


def _cast_one(
    grid: npt.NDArray[np.uint8], origins: npt.NDArray[np.floating[Any]], *settings: Any
) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.float32]]:
    label, depth = cast_label_rays([grid], origins, *settings)
    return label[0], depth[0]


def _without_unknown(
    label: npt.NDArray[np.uint8], depth: npt.NDArray[np.float32], empty_label: int
) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.float32]]:
    """Mark rays that end in a voxel of unknown state as free; free rays are not scored."""
    return np.where(label == UNKNOWN_LABEL, np.uint8(empty_label), label), depth


def ray_iou(
    preds: Sequence[npt.NDArray[np.uint8]],
    gts: Sequence[npt.NDArray[np.uint8]],
    origins: Sequence[npt.NDArray[np.floating[Any]]],
    pc_range: Sequence[float],
    voxel_size: Sequence[float],
    num_classes: int,
    empty_label: int,
) -> RayScores:
    """Return the scores of several samples (grids uint8 [X, Y, Z], origins [O_i, 3] metres)."""
    if not len(preds) == len(gts) == len(origins) or not len(preds):
        raise ValueError("ray_iou needs one prediction, ground truth and origins per sample, >= 1")
    settings = (pc_range, voxel_size, num_classes, empty_label)
    batches = [slice(i, i + _BATCH) for i in range(0, len(preds), _BATCH)]
    counts = [batch_ray_counts(preds[own], gts[own], origins[own], *settings) for own in batches]
    return ray_scores(sum(counts[1:], start=counts[0]))
