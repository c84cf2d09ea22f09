"""LiDAR frames of a data set in arrays. Legend: M key frames, S LiDAR sweeps of a key frame."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from loaders.errors import BadDataError
from loaders.info_io import DataPaths

_SWEEP_KEYS = ("data_path", "timestamp", "sensor2lidar_rotation", "sensor2lidar_translation")
_REGENERATE = "write the info file again with scripts/gen_sweep_info.py"


@dataclass(frozen=True)
class LidarFrames:
    """LiDAR files of a key frame: its own first, then sweeps, newest first.

    Attributes:
        paths: 1 + S files.
        timestamps: int64 [1 + S], microseconds.
        sensor2lidar: float64 [1 + S, 4, 4]; points of each file to the key frame's lidar frame,
            the motion of the vehicle included. The first is the identity.
    """

    paths: list[str]
    timestamps: npt.NDArray[np.int64]
    sensor2lidar: npt.NDArray[np.float64]


@dataclass(frozen=True)
class LidarTable:
    """LiDAR files of all key frames: for each key frame its own file, then its sweeps.

    All values are in numpy arrays, which worker processes share without copies.

    Attributes:
        first: int64 [M + 1], rows of key frame m are first[m] ... first[m + 1] - 1.
        paths: bytes (UTF-8) [rows], relative to the data root if possible.
        timestamps: int64 [rows], microseconds.
        sensor2lidar: float64 [rows, 4, 4], to the key frame's lidar frame.
    """

    first: npt.NDArray[np.int64]
    paths: npt.NDArray[np.bytes_]
    timestamps: npt.NDArray[np.int64]
    sensor2lidar: npt.NDArray[np.float64]

    def frames(self, sample: int, data_root: str) -> LidarFrames:
        """Return the LiDAR files of key frame `sample` as paths under `data_root`."""
        rows = slice(int(self.first[sample]), int(self.first[sample + 1]))
        return LidarFrames(
            [os.path.join(data_root, path.decode()) for path in self.paths[rows]],
            self.timestamps[rows],
            self.sensor2lidar[rows],
        )


def build_lidar_table(
    infos: Sequence[Mapping[str, Any]], data_root: str | os.PathLike[str] | None = None
) -> LidarTable:
    """Put the LiDAR frames of an info file into arrays.

    Args:
        infos: Key frames.
        data_root: Folder of the data set, see `loaders.info_io.DataPaths`.

    Raises:
        BadDataError: If a sweep lacks a key.
    """
    counts = [1 + len(info["lidar_sweeps"]) for info in infos]
    first = np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)
    sensor2lidar = np.tile(np.eye(4), (int(first[-1]), 1, 1))
    timestamps = np.empty(int(first[-1]), dtype=np.int64)
    paths: list[bytes] = []
    data_path = DataPaths(data_root)
    for start, info in zip(first[:-1], infos, strict=True):
        timestamps[start] = int(info["timestamp"])
        paths.append(data_path(str(info["lidar_path"])).encode())
        for row, sweep in enumerate(info["lidar_sweeps"], start=int(start) + 1):
            timestamps[row], sensor2lidar[row] = _read_sweep(sweep)
            paths.append(data_path(str(sweep["data_path"])).encode())
    return LidarTable(first, np.array(paths, dtype=np.bytes_), timestamps, sensor2lidar)


def _read_sweep(sweep: Mapping[str, Any]) -> tuple[int, npt.NDArray[np.float64]]:
    """Return a sweep's time in microseconds and its matrix [4, 4] to the key frame's LiDAR."""
    lacking = [key for key in _SWEEP_KEYS if key not in sweep]
    if lacking:
        name = sweep.get("data_path", "without data_path")
        raise BadDataError(f"a LiDAR sweep ({name}) lacks '{lacking[0]}': {_REGENERATE}")
    matrix = np.eye(4)
    matrix[:3, :3] = sweep["sensor2lidar_rotation"]
    matrix[:3, 3] = sweep["sensor2lidar_translation"]
    return int(sweep["timestamp"]), matrix
