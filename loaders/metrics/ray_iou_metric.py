"""RayIoU as an MMEngine metric."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from mmengine.registry import METRICS

from loaders.metrics.base import CountingMetric, DataSample, gt_and_pred_grids, require, to_numpy
from loaders.metrics.ray_cache import RayCache
from loaders.metrics.ray_iou import (
    DEPTH_THRESHOLDS_M,
    RayCounts,
    ray_scores,
    sample_ray_counts,
    voxel_edge_m,
)
from loaders.metrics.tables import format_table


@METRICS.register_module()
class RayIoUMetric(CountingMetric):
    """RayIoU (SparseOcc, arXiv 2312.17118), in percent with two decimals.

    Results: `RayIoU`, `RayIoU@1`, `@2`, `@4` (metres), and `IoU_<class>`, the mean over the three
    thresholds, for classes that rays hit. The data set must be built with
    `with_ray_origins=True`.

    Args:
        cache_dir: Folder that keeps the rays of the ground truth between evaluations (`RayCache`),
            which halves the time; None casts them every time.
        class_names: See `CountingMetric`.
        empty_label: See `CountingMetric`.
        collect_device: See `CountingMetric`.
        prefix: Prefix of the result's keys.

    Raises:
        LoaderConfigError: If the data set's voxels are not cubes; raised when `dataset_meta` is
            set.
    """

    default_prefix = "ray"

    def __init__(
        self,
        cache_dir: str | None = None,
        class_names: Sequence[str] | None = None,
        empty_label: int | None = None,
        collect_device: str = "gpu",
        prefix: str | None = None,
    ) -> None:
        super().__init__(class_names, empty_label, collect_device, prefix)
        self._cast_gt = None if cache_dir is None else RayCache(cache_dir).cast

    @property
    def dataset_meta(self) -> Mapping[str, Any] | None:
        """Metainfo of the data set."""
        return self._dataset_meta

    @dataset_meta.setter
    def dataset_meta(self, dataset_meta: Mapping[str, Any]) -> None:
        # Loops set it when they are built, before the first training step.
        if "voxel_size" in dataset_meta:
            voxel_edge_m(dataset_meta["voxel_size"])
        self._dataset_meta = dataset_meta

    def count(self, sample: DataSample) -> npt.NDArray[np.int64]:
        """Return the ray counts of one sample, int64 [H + 2, K]: hits per threshold, gt, pred."""
        gt, pred = gt_and_pred_grids(sample, self.empty_label)
        remedy = "build the data set with with_ray_origins=True"
        origins = to_numpy(require(sample, "ray_origins", remedy))
        remedy = "put PackOccSample into the test pipeline"
        counts = sample_ray_counts(
            pred,
            gt,
            origins,
            require(sample, "pc_range", remedy),
            require(sample, "voxel_size", remedy),
            self.num_classes,
            self.empty_label,
            self._cast_gt,
        )
        return np.concatenate([counts.hit, counts.gt[None], counts.pred[None]])

    def score(self, counts: npt.NDArray[np.int64]) -> dict[str, float]:
        """Return the scores of summed counts and log a table per class."""
        scores = ray_scores(RayCounts(counts[:-2], counts[-2], counts[-1]))
        rows: list[list[str | float]] = [
            [name, *map(float, scores.per_class[:, i]), f"{counts[-2, i]:,}"]
            for i, name in enumerate(self.class_names)
        ]
        rows += [[], ["mean", *map(float, scores.per_threshold), f"{counts[-2].sum():,}"]]
        rows += [["RayIoU", scores.mean, "", "", ""]]
        header = ["class", *(f"@{limit:g} m" for limit in DEPTH_THRESHOLDS_M), "rays"]
        self.log(f"RayIoU, percent\n{format_table(header, rows)}")
        result = {"RayIoU": round(scores.mean, 2)}
        for limit, value in zip(DEPTH_THRESHOLDS_M, scores.per_threshold, strict=True):
            result[f"RayIoU@{limit:g}"] = round(float(value), 2)
        for name, iou in zip(self.class_names, scores.per_class.mean(axis=0), strict=False):
            if not np.isnan(iou):
                result[f"IoU_{name}"] = round(float(iou), 2)
        return result
