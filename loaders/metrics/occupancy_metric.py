"""Occupancy IoU as an MMEngine metric."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np
import numpy.typing as npt
from mmengine.registry import METRICS

from loaders.errors import LoaderConfigError
from loaders.metrics.base import CountingMetric, DataSample, gt_and_pred_grids, require, to_numpy
from loaders.metrics.occupancy import occupancy_confusion, occupancy_scores
from loaders.metrics.tables import format_table
from loaders.sample import UNKNOWN_LABEL


@METRICS.register_module()
class OccupancyMetric(CountingMetric):
    """Occ3D mIoU, or OpenOccupancy mIoU and IoU, in percent with two decimals.

    Results: `mIoU`, `IoU` (occupied against free) and `IoU_<class>` for the classes that
    occur in the ground truth or in the predictions.

    Args:
        mask: Voxels that count: seen by a camera ('camera', the Occ3D benchmark), by the LiDAR
            ('lidar') or by both ('both'), without noise ('valid', the OpenOccupancy benchmark), or
            all (None).
        ignore_label: A further ground-truth label whose voxels are not counted, or None. Voxels of
            unknown state (see `ignore_label` of the transforms that load labels) are never counted.
        class_names: See `CountingMetric`.
        empty_label: See `CountingMetric`.
        collect_device: See `CountingMetric`.
        prefix: Prefix of the result's keys.
    """

    default_prefix = "occ3d"
    # The setting of this name is a label in files, which may differ from the label in the grid.
    not_settings = frozenset({"ignore_label"})

    def __init__(
        self,
        mask: Literal["camera", "lidar", "both", "valid"] | None = "camera",
        ignore_label: int | None = None,
        class_names: Sequence[str] | None = None,
        empty_label: int | None = None,
        collect_device: str = "gpu",
        prefix: str | None = None,
    ) -> None:
        super().__init__(class_names, empty_label, collect_device, prefix)
        if mask not in ("camera", "lidar", "both", "valid", None):
            raise LoaderConfigError(
                f"OccupancyMetric: mask is '{mask}', use 'camera', 'lidar', 'both', 'valid' or None"
            )
        self._mask = mask
        self._ignore_label = ignore_label

    def count(self, sample: DataSample) -> npt.NDArray[np.int64]:
        """Return the confusion matrix int64 [K, K] of one sample (rows: ground truth)."""
        gt, pred = gt_and_pred_grids(sample, self.empty_label)
        counted: npt.NDArray[np.bool_] | None = None
        names = ("camera", "lidar") if self._mask == "both" else (self._mask,)
        for name in names if self._mask is not None else ():
            remedy = (
                "its labels have no such mask; to score without one, use --masks none or "
                "OccupancyMetric(mask=None)"
            )
            mask = to_numpy(require(sample, f"mask_{name}", remedy)).astype(bool)
            counted = mask if counted is None else counted & mask
        for ignored in {UNKNOWN_LABEL, self._ignore_label} - {None}:
            meant = gt != ignored
            if not meant.all():
                counted = meant if counted is None else counted & meant
        return occupancy_confusion(pred, gt, counted, self.num_classes)

    def score(self, counts: npt.NDArray[np.int64]) -> dict[str, float]:
        """Return the scores of a confusion matrix and log a table per class."""
        scores = occupancy_scores(counts, self.empty_label)
        per_class = np.delete(scores.per_class, self.empty_label)
        voxels = np.delete(counts.sum(axis=1), self.empty_label)
        rows: list[list[str | float]] = [
            [name, float(iou), f"{n:,}"]
            for name, iou, n in zip(self.class_names, per_class, voxels, strict=True)
        ]
        rows += [[], ["mIoU", scores.miou, f"{voxels.sum():,}"]]
        rows += [["IoU occupied", scores.occupied_iou, ""]]
        title = f"Occupancy IoU, percent (mask: {self._mask or 'none'})"
        self.log(f"{title}\n{format_table(['class', 'IoU', 'voxels'], rows)}")
        result = {"mIoU": scores.miou, "IoU": scores.occupied_iou}
        for name, iou in zip(self.class_names, per_class, strict=True):
            if not np.isnan(iou):
                result[f"IoU_{name}"] = round(float(iou), 2)
        return result
