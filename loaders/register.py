"""Enters data sets, samplers, transforms and metrics into MMEngine's registries when imported."""

from loaders.datasets import nuscenes_occ3d, nuscenes_occupancy, samplers
from loaders.metrics import occupancy_metric, ray_iou_metric
from loaders.transforms import images, labels, pack

__all__ = [
    "images",
    "labels",
    "nuscenes_occ3d",
    "nuscenes_occupancy",
    "occupancy_metric",
    "pack",
    "ray_iou_metric",
    "samplers",
]
