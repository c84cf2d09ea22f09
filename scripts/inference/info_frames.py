"""Read the frames of an info file, for predictions without labels."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from mmengine.config import Config
from mmengine.registry import DATASETS

from loaders.datasets.occupancy_dataset import OccupancyDataset
from loaders.datasets.wrappers import leaf_configs
from scripts.prediction.frames import CameraFrame, Frame, LidarSweep
from scripts.prediction.model import test_dataset_config
from scripts.runtime.building import named_config_keys
from scripts.runtime.errors import ConfigError


@dataclass(frozen=True)
class InfoFrame:
    """A frame of an info file.

    Attributes:
        frame: The frame. Its name is the token of its key frame; sweeps have no name.
        is_key: Whether it is a key frame, which the data set predicts.
    """

    frame: Frame
    is_key: bool


class InfoFrames:
    """The scenes of an info file.

    Args:
        cfg: A resolved config; its test data set selects the cameras, and whether LiDAR is read.
        path: The info file, in the folder of its data set.

    Raises:
        ConfigError: The images of the data root are packed.
        MissingDataError: The file, or an image that it names, does not exist.
        BadDataError: The file is broken.
    """

    def __init__(self, cfg: Config, path: str | Path) -> None:
        leaf = leaf_configs(test_dataset_config(cfg))[0]
        changes = {
            "ann_file": str(Path(path).absolute()),
            "data_root": str(Path(path).parent),
            "version": None,
            "indices": None,
            "lazy_init": False,
        }
        with named_config_keys(cfg):
            self._dataset: OccupancyDataset = DATASETS.build({**leaf, **changes})
        if self._dataset.packed is not None:
            raise ConfigError(
                f"info file {path} is in a data root of packed images, whose calibrations are "
                "those of the original images: give the info file of the original data root"
            )
        rows = self._dataset.frames.key_frame.tolist()
        self._samples: dict[int, int] = {row: sample for sample, row in enumerate(rows)}

    def scenes(self) -> Mapping[str, range]:
        """Return the names of the scenes to the rows of their camera frames, oldest first."""
        dataset = self._dataset
        found: dict[str, range] = {}
        for sample in range(len(dataset)):
            first = int(dataset.frames.scene_first[sample])
            last = int(dataset.frames.key_frame[sample])
            name = str(dataset.get_data_info(sample)["scene_name"])
            before = found.get(name, range(first, first))
            found[name] = range(first, max(before.stop, last + 1))
        return found

    def frames(self, rows: range) -> Iterator[InfoFrame]:
        """Yield the frames of a scene, sweeps included, oldest first."""
        newest = -1
        for row in rows:
            sample = self._samples.get(row)
            times = self._dataset.frames.timestamps[row]
            time_us = int(times.min() if sample is None else self._dataset.timestamps[sample])
            # A sweep that lacks a camera repeats the previous one, including its times.
            newest = max(newest + 1, time_us)
            frame = self._sweep(row, newest) if sample is None else self._key(sample, newest)
            yield InfoFrame(frame, sample is not None)

    def _cameras(self, row: int) -> dict[str, CameraFrame]:
        table, root = self._dataset.frames, Path(self._dataset.data_root)
        cameras = {}
        for i, name in enumerate(self._dataset.cameras):
            sensor2global = np.eye(4)
            sensor2global[:3, :3] = table.sensor2global_rotation[row, i]
            sensor2global[:3, 3] = table.sensor2global_translation[row, i]
            cameras[name] = CameraFrame(
                root / table.paths[row, i].decode(),
                table.cam_intrinsic[row, i],
                sensor2global=sensor2global,
                time_s=int(table.timestamps[row, i]) * 1e-6,
            )
        return cameras

    def _sweep(self, row: int, time_us: int) -> Frame:
        # Its images become history, with known poses; LiDAR sweeps belong to the key frame.
        return Frame(self._cameras(row), time_us * 1e-6)

    def _key(self, sample: int, time_us: int) -> Frame:
        dataset = self._dataset
        points, sweeps = None, None
        if dataset.lidar is not None:
            files = dataset.lidar.frames(sample, str(dataset.data_root))
            points = files.paths[0]
            sweeps = [
                LidarSweep(path, int(time) * 1e-6, matrix)
                for path, time, matrix in zip(
                    files.paths[1:], files.timestamps[1:], files.sensor2lidar[1:], strict=True
                )
            ]
        return Frame(
            self._cameras(int(dataset.frames.key_frame[sample])),
            time_us * 1e-6,
            ego2global=dataset.ego2global[sample],
            lidar2ego=dataset.lidar2ego[sample],
            lidar=points,
            lidar_sweeps=sweeps,
            name=str(dataset.get_data_info(sample)["token"]),
        )
