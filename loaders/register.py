"""Enters data sets, samplers, transforms and metrics into MMEngine's registries when imported."""

from loaders.datasets import (
    nuscenes_occ3d,
    nuscenes_occupancy,
    nuscenes_surroundocc,
    samplers,
    wrappers,
)
from loaders.lidar import points
from loaders.metrics import occupancy_metric, ray_iou_metric, save_predictions
from loaders.transforms import bev, images, labels, occupancy_labels, pack

__all__ = [
    "bev",
    "images",
    "labels",
    "nuscenes_occ3d",
    "nuscenes_occupancy",
    "nuscenes_surroundocc",
    "occupancy_labels",
    "occupancy_metric",
    "pack",
    "points",
    "ray_iou_metric",
    "samplers",
    "save_predictions",
    "wrappers",
]
