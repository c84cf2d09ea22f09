"""nuScenes with the labels of Occ3D (arXiv 2304.14365)."""

from __future__ import annotations

from mmengine.registry import DATASETS

from loaders.datasets.occupancy_dataset import OccupancyDataset

OCC3D_CLASSES = (
    "others",
    "barrier",
    "bicycle",
    "bus",
    "car",
    "construction_vehicle",
    "motorcycle",
    "pedestrian",
    "traffic_cone",
    "trailer",
    "truck",
    "driveable_surface",
    "other_flat",
    "sidewalk",
    "terrain",
    "manmade",
    "vegetation",
)


@DATASETS.register_module()
class NuScenesOcc3DDataset(OccupancyDataset):
    """Occ3D: 0.4 m voxels in the ego frame, 17 classes, visibility masks; occ = ego."""

    default_classes = OCC3D_CLASSES
    default_pc_range = (-40.0, -40.0, -1.0, 40.0, 40.0, 5.4)
    default_voxel_size = (0.4, 0.4, 0.4)
    occ_frame = "ego"
