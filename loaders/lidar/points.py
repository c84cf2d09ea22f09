"""LiDAR points: loading, accumulation over sweeps, range filter. Legend: n points."""

from __future__ import annotations

import os
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from mmengine.registry import TRANSFORMS

from loaders.errors import BadDataError, LoaderConfigError, MissingDataError, TruncatedDataError
from loaders.sample import LidarFrames, OccSample
from loaders.transforms.cache import ArrayCache

Points = npt.NDArray[np.float32]

_COLUMNS = 5  # x, y, z, intensity, ring
_TIME_LAG = 4  # where the ring was
_POINT_BYTES = _COLUMNS * 4
_RESTORE = "restore it from the original archive"


def read_lidar_points(path: str) -> Points:
    """Reads a nuScenes LiDAR file.

    Returns:
        float32 [n, 5]: x, y, z (metres, frame of the LiDAR at the time of the sweep), intensity,
        ring index.

    Raises:
        MissingDataError: If the file does not exist.
        BadDataError: If it is empty, truncated, or holds coordinates that are no numbers.
    """
    try:
        with open(path, "rb") as file:
            data = bytearray(os.fstat(file.fileno()).st_size)  # writable, unlike bytes
            data = data[: file.readinto(data)]
    except FileNotFoundError:
        raise MissingDataError(
            f"LiDAR file {path} does not exist: complete the data set, or write the info file for "
            "the data you have with scripts/gen_sweep_info.py"
        ) from None
    except OSError as error:
        raise BadDataError(f"LiDAR file {path} cannot be read ({error.strerror})") from error
    if not data or len(data) % _POINT_BYTES:
        raise TruncatedDataError(
            f"LiDAR file {path} is truncated ({len(data)} bytes are no whole number of points of "
            f"{_POINT_BYTES}): {_RESTORE}"
        )
    points = np.frombuffer(data, dtype=np.float32).reshape(-1, _COLUMNS)
    if not np.isfinite(points[:, :4]).all():
        raise BadDataError(f"LiDAR file {path} has points that are no numbers: {_RESTORE}")
    return points


@TRANSFORMS.register_module()
class LoadLidarSweeps:
    """Loads the points of a key frame and its sweeps, moved to where they were at its time.

    As the published OPUS-Fusion is trained: the newest sweeps, without the points on the vehicle
    itself; a key frame without sweeps stands in for each of them. The key frame's own points come
    first and are all kept. The ring column becomes the time lag in seconds.

    Does nothing for samples without LiDAR (a data set built with ``use_lidar=False``), so that one
    pipeline serves models with and without it.

    Args:
        num_sweeps: How many sweeps to add, if there are so many.
        close_m: Points of sweeps with both abs(x) and abs(y) below this, in their own LiDAR's
            frame, are dropped.
        lidar_cache_mb: Size of the LiDAR cache of each process, MiB (0.7 MiB per nuScenes file).
    """

    needs_lidar = True  # left out of a shared pipeline where the data set has no LiDAR

    def __init__(
        self, num_sweeps: int = 9, close_m: float = 1.0, lidar_cache_mb: float = 0.0
    ) -> None:
        if num_sweeps < 0:
            raise LoaderConfigError(
                f"LoadLidarSweeps: num_sweeps is {num_sweeps}, it must not be < 0"
            )
        self.num_sweeps = num_sweeps
        self.close_m = close_m
        self._cache = ArrayCache(lidar_cache_mb)

    def __call__(self, sample: OccSample) -> OccSample:
        """Sets ``points`` float32 [n, 5], in the frame of the labels."""
        if sample.lidar is None:
            return sample
        lidar2occ = sample.lidar2occ
        files = self._files(sample.lidar)
        parts = [self._load(sample.lidar, row, lidar2occ, is_key=not i) for i, row in files]
        sample.points = np.concatenate(parts)
        return sample

    def _files(self, lidar: LidarFrames) -> list[tuple[int, int]]:
        """Returns (position, row of ``lidar``) of the files to load, the key frame first."""
        newest = range(1, min(len(lidar.paths), self.num_sweeps + 1))
        return list(enumerate([0, *(newest or [0] * self.num_sweeps)]))

    def _load(
        self, lidar: LidarFrames, row: int, lidar2occ: npt.NDArray[np.float64], is_key: bool
    ) -> Points:
        path = lidar.paths[row]
        (points,) = self._cache.get(path, lambda: [read_lidar_points(path)])
        if not is_key:
            points = points[(np.abs(points[:, :2]) >= self.close_m).any(axis=1)]
        points = move_points(points, lidar2occ @ lidar.sensor2lidar[row])
        points[:, _TIME_LAG] = (lidar.timestamps[0] - lidar.timestamps[row]) * 1e-6
        return points


@TRANSFORMS.register_module()
class FilterPoints:
    """Drops LiDAR points outside a range of the occ frame; does nothing without LiDAR.

    Args:
        point_range: (x0, y0, z0, x1, y1, z1) metres; None takes the range of the grid. The upper
            ends do not belong to it.
    """

    needs_lidar = True  # left out of a shared pipeline where the data set has no LiDAR

    def __init__(self, point_range: Sequence[float] | None = None) -> None:
        self.point_range = None if point_range is None else tuple(map(float, point_range))

    def __call__(self, sample: OccSample) -> OccSample:
        """Replaces ``points`` by those inside the range."""
        if sample.lidar is None:
            return sample
        if sample.points is None:
            raise LoaderConfigError("FilterPoints needs LoadLidarSweeps before it in the pipeline")
        limits = np.asarray(self.point_range or sample.pc_range, dtype=np.float32)
        xyz = sample.points[:, :3]
        inside = ((xyz >= limits[:3]) & (xyz < limits[3:])).all(axis=1)
        sample.points = sample.points[inside]
        return sample


def move_points(
    points: npt.NDArray[np.float32], matrix: npt.NDArray[np.float64]
) -> npt.NDArray[np.float32]:
    """Returns a copy of points [n, 3 + C] with a matrix [4, 4] applied to their first 3 columns."""
    moved = points.copy()
    rotation, translation = matrix[:3, :3].astype(np.float32), matrix[:3, 3].astype(np.float32)
    moved[:, :3] = points[:, :3] @ rotation.T + translation
    return moved
