"""A data set that is not nuScenes: four cameras, four classes, its own grid and label files."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from mmengine.registry import DATASETS, TRANSFORMS

from loaders.datasets.occupancy_dataset import OccupancyDataset
from loaders.errors import BadDataError, MissingDataError
from loaders.sample import OccSample

CAMERAS = ("FRONT", "LEFT", "BACK", "RIGHT")


@DATASETS.register_module()
class CourtyardDataset(OccupancyDataset):
    """Key frames of the courtyard, in the info format that :class:`OccupancyDataset` reads."""

    default_classes = ("ground", "wall", "crate", "person")
    default_pc_range = (-12.0, -9.0, -0.6, 12.0, 9.0, 2.4)  # metres, ego frame
    default_voxel_size = (0.6, 0.6, 0.6)  # 40 x 30 x 5 voxels
    occ_frame = "ego"


@TRANSFORMS.register_module()
class LoadCourtyardLabels:
    """Reads ``labels/<token>.npy``: uint8 [X, Y, Z], free voxels bear the label after the last."""

    def label_path(self, sample: OccSample) -> str:
        """Returns the label file of a sample (scripts/check_data.py asks for it, too)."""
        return str(Path(sample.data_root, "labels", f"{sample.sample_token}.npy"))

    def __call__(self, sample: OccSample) -> OccSample:
        """Sets ``voxel_semantics``; there are no visibility masks, so every voxel counts."""
        path = self.label_path(sample)
        try:
            labels = np.load(path, allow_pickle=False)
        except FileNotFoundError:
            raise MissingDataError(
                f"label file {path} does not exist: make the data set with examples/courtyard"
            ) from None
        except (OSError, ValueError, EOFError) as error:
            raise BadDataError(f"label file {path} is broken: make the data set anew") from error
        if labels.shape != sample.grid_shape or labels.max() > len(sample.class_names):
            raise BadDataError(f"label file {path} does not fit the grid or the classes")
        sample.voxel_semantics = labels.astype(np.uint8, copy=False)
        return sample
