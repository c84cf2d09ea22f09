"""nuScenes with the labels of OpenOccupancy (nuScenes-Occupancy, arXiv 2303.03991)."""

from __future__ import annotations

from mmengine.registry import DATASETS

from loaders.datasets.nuscenes_occ3d import OCC3D_CLASSES
from loaders.datasets.occupancy_dataset import OccupancyDataset

# Classes of Occ3D without the first one, which is noise in these labels.
OCCUPANCY_CLASSES = OCC3D_CLASSES[1:]


@DATASETS.register_module()
class NuScenesOccupancyDataset(OccupancyDataset):
    """OpenOccupancy: 0.2 m voxels in the key frame's lidar frame, 16 classes; occ = lidar."""

    default_classes = OCCUPANCY_CLASSES
    default_pc_range = (-51.2, -51.2, -5.0, 51.2, 51.2, 3.0)
    default_voxel_size = (0.2, 0.2, 0.2)
    occ_frame = "lidar"
