"""Voxel IoU from confusion matrices: Occ3D mIoU and the OpenOccupancy numbers.

Sources: Occ3D (arXiv 2304.14365) for the camera-masked mIoU, OpenOccupancy (arXiv 2303.03991) for
the IoU of occupied against free. Legend: X Y Z voxels along the axes, K classes including free.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from loaders.errors import LoaderConfigError

IntArray = npt.NDArray[np.integer[Any]]


def occupancy_confusion(
    pred: IntArray, gt: IntArray, mask: npt.NDArray[np.bool_] | None, num_classes: int
) -> npt.NDArray[np.int64]:
    """Count voxels by (true class, predicted class).

    Args:
        pred: Labels [X, Y, Z] (any common shape works), 0 ... num_classes - 1.
        gt: Labels of the same shape.
        mask: Voxels to count, or None for all (camera-visible ones for Occ3D, non-noise ones for
            OpenOccupancy).
        num_classes: K, free included.

    Returns:
        int64 [K, K]; rows are the ground truth.

    Raises:
        ValueError: If shapes differ.
        LoaderConfigError: If a counted label is outside 0 ... K - 1.
    """
    if pred.shape != gt.shape or (mask is not None and mask.shape != gt.shape):
        shapes = f"{pred.shape}, {gt.shape} and {None if mask is None else mask.shape}"
        raise ValueError(f"prediction, ground truth and mask must have one shape, got {shapes}")
    # Most voxels are free in both, and free is usually the last label. These are counted together;
    # only the others are counted one by one.
    common = num_classes - 1
    differs = (pred != common) | (gt != common)
    if mask is not None:
        differs &= mask
    index = np.flatnonzero(differs)
    counted = gt.size if mask is None else int(np.count_nonzero(mask))
    pred, gt = pred.ravel()[index], gt.ravel()[index]
    for name, labels in (("prediction", pred), ("ground truth", gt)):
        if labels.size and not 0 <= int(labels.min()) <= int(labels.max()) < num_classes:
            raise LoaderConfigError(
                f"{name} has labels from {labels.min()} to {labels.max()}, "
                f"but {num_classes} classes allow 0 to {num_classes - 1}: use the same list of "
                "classes for the model, the data set and the metric"
            )
    # One bincount over a combined label is several times faster than np.add.at.
    combined = gt.astype(np.int32) * num_classes + pred
    counts = np.bincount(combined, minlength=num_classes * num_classes).astype(np.int64)
    counts[-1] += counted - len(index)
    return counts.reshape(num_classes, num_classes)


@dataclass(frozen=True)
class OccupancyScores:
    """Scores in percent.

    Attributes:
        miou: Mean IoU of the semantic classes that occur in the ground truth or in the prediction,
            two decimals. A class that occurs only in the prediction counts as 0.
        per_class: float64 [K], free included; NaN for classes that occur in neither.
        occupied_iou: IoU of occupied (any class except free) against free, two decimals.
    """

    miou: float
    per_class: npt.NDArray[np.float64]
    occupied_iou: float


def occupancy_scores(confusion: IntArray, empty_label: int) -> OccupancyScores:
    """Convert a confusion matrix [K, K] (rows: ground truth) to scores.

    Args:
        confusion: Sum of `occupancy_confusion` over all samples.
        empty_label: Index of the free class.
    """
    hit = np.diag(confusion).astype(np.float64)
    union = confusion.sum(axis=1) + confusion.sum(axis=0) - hit
    iou: npt.NDArray[np.float64] = np.full(len(hit), np.nan)
    np.divide(hit, union, out=iou, where=union > 0)
    miou = round(mean_of_known(np.delete(iou, empty_label)) * 100, 2)

    occupied = np.ones(len(confusion), dtype=bool)
    occupied[empty_label] = False
    either = confusion.sum() - confusion[empty_label, empty_label]
    both = confusion[np.ix_(occupied, occupied)].sum()
    occupied_iou = round(float(both) / float(either) * 100, 2) if either else float("nan")
    return OccupancyScores(miou, iou * 100, occupied_iou)


def mean_of_known(values: npt.NDArray[np.float64]) -> float:
    """Return the mean of all entries that are not NaN; NaN if there are none."""
    return float("nan") if np.isnan(values).all() else float(np.nanmean(values))


def dense_labels(
    coords: IntArray, labels: IntArray, shape: tuple[int, int, int], empty_label: int
) -> npt.NDArray[np.uint8]:
    """Write sparse predictions into a grid.

    Args:
        coords: [n, 3] voxel indices (x, y, z).
        labels: [n] classes.
        shape: (X, Y, Z).
        empty_label: Value of all other voxels.

    Returns:
        uint8 [X, Y, Z].

    Raises:
        LoaderConfigError: If an index lies outside the grid.
    """
    if coords.size and not ((coords >= 0).all() and (coords < np.array(shape)).all()):
        raise LoaderConfigError(
            f"predicted voxels from {coords.min(axis=0).tolist()} to {coords.max(axis=0).tolist()} "
            f"are outside the ground truth's grid {shape}: set the model's pc_range "
            "and voxel_size to those of the data set"
        )
    grid = np.full(shape, empty_label, dtype=np.uint8)
    grid[coords[:, 0], coords[:, 1], coords[:, 2]] = labels
    return grid
