"""Check of the metrics: Occ3D mIoU, OpenOccupancy IoUs, RayIoU.

The published metrics round means to two decimals of a percent; RayIoU is compared as a fraction. In
the files, the mIoU excludes classes that are predicted but absent from the ground truth. The
benchmarks and this code count them as 0, so they are excluded here for the comparison.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt

from loaders.metrics.occupancy import occupancy_confusion, occupancy_scores
from loaders.metrics.ray_iou import cast_label_rays, ray_directions, ray_iou
from loaders.transforms.geometry import lidar_ray_origins, quaternion_to_matrix
from scripts.golden.report import Check, GoldenFile, absolute

OCC3D_RANGE = (-40.0, -40.0, -1.0, 40.0, 40.0, 5.4)
OCC3D_VOXEL = (0.4, 0.4, 0.4)
OCC3D_FREE = 17
OPENOCC_FREE = 16


def check_metrics(golden: GoldenFile) -> Iterator[Check]:
    """Compare rays, origins and scores with an `occ_metrics` file."""
    samples = range(sum(key.startswith("gt/") for key in golden))
    preds = [golden[f"pred/{i}"] for i in samples]
    gts = [golden[f"gt/{i}"] for i in samples]
    origins = [golden[f"origins/{i}"] for i in samples]

    yield from _check_origins(golden)
    yield absolute("rays", ray_directions(), golden["rays"], 1e-6)
    labels, depths = cast_label_rays(
        [preds[0], gts[0]], origins[0], OCC3D_RANGE, OCC3D_VOXEL, OCC3D_FREE
    )
    for name, label, depth in zip(("ray_pred/0", "ray_gt/0"), labels, depths, strict=True):
        yield absolute(f"{name} class", label, golden[name][:, 0], 0)
        yield absolute(f"{name} depth", depth, golden[name][:, 1], 1e-3)
    scores = ray_iou(preds, gts, origins, OCC3D_RANGE, OCC3D_VOXEL, OCC3D_FREE + 1, OCC3D_FREE)
    yield absolute("rayiou/per_class", scores.per_class / 100, golden["rayiou/per_class"], 1e-6)
    means = np.array([scores.mean, *scores.per_threshold]) / 100
    yield absolute("rayiou/mean", means, golden["rayiou/mean"], 1e-6)

    confusion = sum(
        occupancy_confusion(pred, gt, golden[f"mask_camera/{i}"], OCC3D_FREE + 1)
        for i, (pred, gt) in enumerate(zip(preds, gts, strict=True))
    )
    yield absolute("miou_occ3d/hist", confusion, golden["miou_occ3d/hist"], 0)
    per_class, miou = _of_true_classes(np.asarray(confusion), OCC3D_FREE)
    yield absolute("miou_occ3d/per_class", per_class, golden["miou_occ3d/per_class"], 1e-6)
    yield absolute("miou_occ3d/mean", miou, golden["miou_occ3d/mean"], 1e-9)

    confusion = _openocc_confusion(golden)
    per_class, miou = _of_true_classes(confusion, OPENOCC_FREE)
    yield absolute("openocc/per_class", per_class, golden["openocc/per_class"], 1e-6)
    yield absolute("openocc/mIoU", miou, golden["openocc/mIoU"], 1e-9)
    occupied_iou = occupancy_scores(confusion, OPENOCC_FREE).occupied_iou
    yield absolute("openocc/IoU", occupied_iou, golden["openocc/IoU"], 1e-9)


def _of_true_classes(
    confusion: npt.NDArray[Any], empty_label: int
) -> tuple[npt.NDArray[np.float64], float]:
    """Return IoUs in percent [K] of the ground truth's classes, and their mean without free."""
    per_class = occupancy_scores(confusion, empty_label).per_class.copy()
    per_class[confusion.sum(axis=1) == 0] = np.nan
    return per_class, round(float(np.nanmean(np.delete(per_class, empty_label))), 2)


def _check_origins(golden: GoldenFile) -> Iterator[Check]:
    infos = json.loads(golden["meta/infos"].tobytes())
    rotation = np.stack([quaternion_to_matrix(info["ego2global_rotation"]) for info in infos])
    translation = np.array([info["ego2global_translation"] for info in infos])
    mounting = np.array([info["lidar2ego_translation"] for info in infos])
    for i in range(len(infos)):
        origins = lidar_ray_origins(rotation, translation, mounting, current=i)
        yield absolute(f"origins/{i}", origins, golden[f"origins/{i}"], 1e-6)


def _openocc_confusion(golden: GoldenFile) -> npt.NDArray[Any]:
    samples = range(sum(key.startswith("oo_gt/") for key in golden))
    confusions = [
        occupancy_confusion(
            golden[f"oo_pred/{i}"],
            golden[f"oo_gt/{i}"],
            golden[f"oo_mask/{i}"],  # excludes noise
            OPENOCC_FREE + 1,
        )
        for i in samples
    ]
    return np.sum(confusions, axis=0)
