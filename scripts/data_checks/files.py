"""Checks of the files of key frames: images, LiDAR and labels are opened and read.

Every file of a data set is assigned to one key frame (sweeps to the following key frame), so that
checking all key frames checks each file once.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mmengine.dataset import BaseDataset

from loaders.datasets.occupancy_dataset import OccupancyDataset
from loaders.errors import BadDataError, MissingDataError
from loaders.lidar.points import LoadLidarSweeps, load_dim_of, read_lidar_points
from loaders.transforms.decode import read_image
from loaders.transforms.images import LoadMultiViewImages
from scripts.data_checks.consistency import check_labels_at_returns
from scripts.data_checks.infos import Finding

# Decoding at an eighth of the size still reads the whole file.
_REDUCTION = 8


class FileChecker:
    """Checker for the files of single samples.

    Args:
        dataset: Data set built from a config.
    """

    def __init__(self, dataset: BaseDataset) -> None:
        self.dataset = dataset
        self._steps: list[Any] = list(dataset.pipeline.transforms)
        cameras = dataset.cameras if isinstance(dataset, OccupancyDataset) else ()
        found = [
            {name: step.camera_hw.get(name, step.raw_hw) for name in cameras}
            for step in self._steps
            if isinstance(step, LoadMultiViewImages)
        ]
        self._loads_images = bool(found)
        self.image_hw = {name: size for sizes in found for name, size in sizes.items()}
        # Size of the images in the files; packed ones are smaller.
        self._stored_hw = dict(self.image_hw)
        packed = dataset.packed if isinstance(dataset, OccupancyDataset) else None
        for name, size in self.image_hw.items():
            stored = None if packed is None else packed.of(size)
            self._stored_hw[name] = size if stored is None else stored.stored_hw
        self._reads_lidar = any(isinstance(step, LoadLidarSweeps) for step in self._steps)
        self._load_dim = load_dim_of(self._steps)
        self._label_steps = [step for step in self._steps if hasattr(step, "label_path")]

    def check(self, index: int) -> tuple[int, list[Finding]]:
        """Return the number of opened files of a sample, and the findings."""
        if not isinstance(self.dataset, OccupancyDataset):
            return 1, list(_attempt("sample", lambda: self.dataset[index]))
        images, sweeps = self._images(index), self._lidar_files(index)
        found = [finding for path, camera in images for finding in self._check_image(path, camera)]
        for path in sweeps:
            found += _attempt("LiDAR", lambda path=path: read_lidar_points(path, self._load_dim))
        sample = self.dataset.get_sample(index)
        for step in self._label_steps:
            found += _attempt("labels", lambda step=step: step(sample))
        found += check_labels_at_returns(self.dataset, sample, self._load_dim)
        return len(images) + len(sweeps) + len(self._label_steps), found

    def _images(self, index: int) -> list[tuple[str, str]]:
        """Return paths and cameras of a key frame's images, and of the sweeps before it if used."""
        assert isinstance(self.dataset, OccupancyDataset)
        if not self._loads_images:
            return []
        frames, row = self.dataset.frames, self.dataset.get_data_info(index)["row"]
        last, scene = int(frames.key_frame[row]), frames.scene_samples[row]
        first = last
        if self.dataset.num_frames > 1:
            earlier = frames.key_frame[scene][frames.key_frame[scene] < last]
            first = int(earlier.max()) + 1 if len(earlier) else int(frames.scene_first[row])
        root, cameras = Path(self.dataset.data_root), self.dataset.cameras
        images = {  # sweeps may repeat
            str(root / path.decode()): camera
            for frame in frames.paths[first : last + 1].tolist()
            for path, camera in zip(frame, cameras, strict=True)
        }
        return list(images.items())

    def _lidar_files(self, index: int) -> list[str]:
        """Return the LiDAR file of a key frame and the sweeps since the previous key frame."""
        assert isinstance(self.dataset, OccupancyDataset)
        table = self.dataset.lidar
        if table is None or not self._reads_lidar:
            return []
        row = self.dataset.get_data_info(index)["row"]
        scene, times = self.dataset.frames.scene_samples[row], self.dataset.timestamps
        earlier = times[scene][times[scene] < times[row]]
        lidar = table.frames(row, str(self.dataset.data_root))
        since = earlier.max() if len(earlier) else -1
        return [
            path
            for path, time in zip(lidar.paths, lidar.timestamps, strict=True)
            if time > since or path == lidar.paths[0]
        ]

    def _check_image(self, path: str, camera: str) -> Iterator[Finding]:
        def read() -> None:
            read_image(path, reduction=_REDUCTION, raw_hw=self._stored_hw[camera])

        yield from _attempt("image", read)


def _attempt(what: str, action: Any) -> Iterator[Finding]:
    """Yield a finding if the action fails because of the data."""
    try:
        action()
    except (MissingDataError, BadDataError) as error:
        yield what, error.kind, str(error)
