"""A custom data set: four cameras, four classes, its own grid and label files."""

from __future__ import annotations

from pathlib import Path

from mmengine.registry import DATASETS, TRANSFORMS

from loaders.datasets.occupancy_dataset import OccupancyDataset
from loaders.safe_reading import FileKind, open_arrays
from loaders.sample import OccSample
from loaders.transforms.labels import known_labels

CAMERAS = ("FRONT", "LEFT", "BACK", "RIGHT")
LABEL_FILE = FileKind(
    "label file",
    missing="make the data set with examples/courtyard",
    restore="make the data set again",
    max_bytes=2**20,
)


@DATASETS.register_module()
class CourtyardDataset(OccupancyDataset):
    """Key frames of the courtyard, in the info format that `OccupancyDataset` reads."""

    default_classes = ("ground", "wall", "crate", "person")
    default_pc_range = (-12.0, -9.0, -0.6, 12.0, 9.0, 2.4)  # metres, ego frame
    default_voxel_size = (0.6, 0.6, 0.6)  # 40 x 30 x 5 voxels
    occ_frame = "ego"


@TRANSFORMS.register_module()
class LoadCourtyardLabels:
    """Read `labels/<token>.npy`: uint8 [X, Y, Z]; the label after the last class means free."""

    def label_path(self, sample: OccSample) -> str:
        """Return the label file of a sample; scripts/check_data.py also calls this."""
        return str(Path(sample.data_root, "labels", f"{sample.sample_token}.npy"))

    def __call__(self, sample: OccSample) -> OccSample:
        """Set `voxel_semantics`. Without visibility masks every voxel counts."""
        path, shape = self.label_path(sample), sample.grid_shape
        with open_arrays(path, LABEL_FILE, max_bytes=LABEL_FILE.max_bytes) as file:
            if "" not in file or file.header("").shape != shape:
                raise LABEL_FILE.broken(path, f"is not a grid of {shape}")
            labels = file.read("")
        # 255 marks voxels of unknown state, if the files have any.
        sample.voxel_semantics = known_labels(
            labels, 255, len(sample.class_names) + 1, path, LABEL_FILE.restore
        )
        return sample
