"""nuScenes with the labels of SurroundOcc (arXiv 2303.09551)."""

from __future__ import annotations

from mmengine.registry import DATASETS

from loaders.datasets.nuscenes_occupancy import OCCUPANCY_CLASSES
from loaders.datasets.occupancy_dataset import OccupancyDataset


@DATASETS.register_module()
class NuScenesSurroundOccDataset(OccupancyDataset):
    """SurroundOcc: 0.5 m voxels in the key frame's lidar frame, 16 classes; occ = lidar."""

    default_classes = OCCUPANCY_CLASSES
    default_pc_range = (-50.0, -50.0, -5.0, 50.0, 50.0, 3.0)
    default_voxel_size = (0.5, 0.5, 0.5)
    occ_frame = "lidar"
