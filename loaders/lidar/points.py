"""LiDAR points: loading, accumulation over sweeps, range filter. Legend: n points."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from mmengine.logging import print_log
from mmengine.registry import TRANSFORMS

from loaders.errors import BadDataError, LoaderConfigError
from loaders.safe_reading import MIB, FileKind, read_file, truncated
from loaders.sample import LidarFrames, OccSample
from loaders.transforms.cache import ArrayCache

Points = npt.NDArray[np.float32]

LOAD_DIMS = (3, 4, 5)  # columns of files that are understood
_COLUMNS = 5  # x, y, z, intensity, ring
_TIME_LAG = 4  # where the ring was
_LIDAR_FILE = FileKind(
    "LiDAR file",
    "complete the data set, or write the info file for the data you have with "
    "scripts/gen_sweep_info.py",
    "restore it from the original archive",
    max_bytes=64 * MIB,
)
# Nothing that a LiDAR sees is further away.
_MAX_DISTANCE_M = 1e5
# A share of points beyond that, above which the file holds something else than points.
_MAX_SHARE_FAR = 0.1
# Files with dropped points that a process names, and those that it has named.
_MAX_NOTES = 20
_noted: set[str] = set()
# Rows that the plausibility of the columns is judged by.
_JUDGED_ROWS = 300
# The 99.9 % quantile of chi-squared with 2, 3 and 4 degrees of freedom.
_SIGNIFICANT = {3: 13.8, 4: 16.3, 5: 18.5}


def read_lidar_points(path: str, load_dim: int = _COLUMNS) -> Points:
    """Reads a LiDAR file, as nuScenes has them or with fewer columns.

    Rows whose x, y, z or intensity is no number, and rows further away than 100 km, are dropped; a
    warning names the file and their number once (for the first files of a process).

    Args:
        path: Raw float32 rows: x, y, z (metres), then intensity, then ring index.
        load_dim: Columns of the file: 3, 4 or 5.

    Returns:
        float32 [n, 5]: x, y, z (metres, frame of the LiDAR at the time of the sweep), intensity,
        ring index. Columns that the file does not have are 0.

    Raises:
        MissingDataError: If the file does not exist.
        BadDataError: If it is empty or truncated, has no point that is a number, or its content
            cannot be rows of so many columns.
    """
    data = read_file(path, _LIDAR_FILE)
    row_bytes = 4 * load_dim
    if not data or len(data) % row_bytes:
        raise truncated(
            path,
            _LIDAR_FILE,
            f"{len(data)} bytes are no whole number of points of {row_bytes}; other data sets have "
            "files of other columns, which load_dim of LoadLidarSweeps sets",
        )
    rows = np.frombuffer(data, dtype="<f4").reshape(-1, load_dim)
    kept = _usable(path, rows, load_dim)
    # With all rows, since a file of other columns has its infinities anywhere.
    _check_columns(path, rows, load_dim)
    if len(kept) < len(rows):
        _note_dropped(path, len(rows) - len(kept), len(rows))
    if load_dim == _COLUMNS:
        return kept
    points = np.zeros((len(kept), _COLUMNS), dtype=np.float32)
    points[:, :load_dim] = kept
    return points


def _usable(path: str, rows: Points, load_dim: int) -> Points:
    """Returns the rows that are points; raises BadDataError if they cannot be points at all."""
    if np.isfinite(rows[:, :4]).all() and np.abs(rows[:, :3]).max() <= _MAX_DISTANCE_M:
        return rows
    finite = np.isfinite(rows[:, :4]).all(axis=1)
    if not finite.any():
        raise _LIDAR_FILE.broken(path, "has no point that is a number")
    near = (np.abs(rows[:, :3]) <= _MAX_DISTANCE_M).all(axis=1)
    if (finite & ~near).sum() > _MAX_SHARE_FAR * finite.sum():
        raise _not_points(path, load_dim, "many lie further away than 100 km")
    kept: Points = rows[finite & near]
    return kept


def _note_dropped(path: str, number: int, total: int) -> None:
    """Logs that points were dropped, once per file, for the first files of a process."""
    if path in _noted or len(_noted) >= _MAX_NOTES:
        return
    _noted.add(path)
    last = "; further files like it are not named" if len(_noted) == _MAX_NOTES else ""
    print_log(
        f"LiDAR file {path}: dropped {number} of {total} points, which are no numbers or further "
        f"away than 100 km{last}",
        logger="current",
        level=logging.WARNING,
    )


def _not_points(path: str, load_dim: int, why: str) -> BadDataError:
    return BadDataError(
        f"LiDAR file {path} is no list of points of {load_dim} columns ({why}): set load_dim of "
        "LoadLidarSweeps to the columns of the files, or restore it from the original archive"
    )


def _check_columns(path: str, rows: Points, load_dim: int) -> None:
    """Raises BadDataError if a file rather has another number of columns.

    Rows that are read with a wrong number of columns mix x, y, z and intensity in every column, so
    that all columns are distributed alike; with the right one they differ. Where nothing differs
    with any number, as between random numbers, the fifth column decides: it is a ring index or,
    in other data sets, a time.
    """
    values = np.ascontiguousarray(rows).reshape(-1)
    others = [dim for dim in LOAD_DIMS if dim != load_dim and len(values) % dim == 0]
    if not others or _difference(values, load_dim) > _SIGNIFICANT[load_dim]:
        return
    better = [dim for dim in others if _difference(values, dim) > _SIGNIFICANT[dim]]
    if better:
        raise _not_points(path, load_dim, f"its columns differ if there are {better[-1]} of them")
    if load_dim == _COLUMNS and not _is_ring_or_time(rows[:, 4]):
        raise _not_points(path, load_dim, "the fifth is neither a ring index nor a time")


def _difference(values: npt.NDArray[np.float32], columns: int) -> float:
    """Returns how much the columns differ, by where they lie or by how far they spread.

    The larger of Kruskal and Wallis' statistics of the first rows' values and of their amounts.
    """
    values = values[: _JUDGED_ROWS * columns]
    return max(_kruskal_wallis(values, columns), _kruskal_wallis(np.abs(values), columns))


def _kruskal_wallis(values: npt.NDArray[np.float32], columns: int) -> float:
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    ranks = (np.cumsum(counts) - (counts - 1) / 2)[inverse.reshape(-1)]  # ties share their mean
    spread = float(((ranks - ranks.mean()) ** 2).sum())
    if not spread:
        return 0.0
    between = (ranks.reshape(-1, columns).mean(axis=0) - ranks.mean()) ** 2
    rows = len(values) // columns
    return (len(values) - 1) * rows * float(between.sum()) / spread


def _is_ring_or_time(column: Points) -> bool:
    """Whether values are whole numbers, rise, or repeat as the time lags of sweeps do."""
    if not np.isfinite(column).all():
        return False
    is_ring = bool(((column >= 0) & (column == np.floor(column))).all())
    return is_ring or bool((np.diff(column) >= 0).all()) or 4 * len(set(column)) <= len(column)


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
        load_dim: Columns of the files: 5 (nuScenes: x, y, z, intensity, ring), 4 or 3. Missing ones
            are 0.
    """

    needs_lidar = True  # left out of a shared pipeline where the data set has no LiDAR

    def __init__(
        self,
        num_sweeps: int = 9,
        close_m: float = 1.0,
        lidar_cache_mb: float = 0.0,
        load_dim: int = _COLUMNS,
    ) -> None:
        if num_sweeps < 0:
            raise LoaderConfigError(
                f"LoadLidarSweeps: num_sweeps is {num_sweeps}, it must not be < 0"
            )
        if load_dim not in LOAD_DIMS:
            raise LoaderConfigError(
                f"LoadLidarSweeps: load_dim is {load_dim}, use one of {LOAD_DIMS}"
            )
        self.load_dim = load_dim
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
        (points,) = self._cache.get(path, lambda: [read_lidar_points(path, self.load_dim)])
        if not is_key:
            points = points[(np.abs(points[:, :2]) >= self.close_m).any(axis=1)]
        points = move_points(points, lidar2occ @ lidar.sensor2lidar[row])
        points[:, _TIME_LAG] = (lidar.timestamps[0] - lidar.timestamps[row]) * 1e-6
        return points


def load_dim_of(steps: Iterable[Any]) -> int:
    """Returns the columns of LiDAR files that a pipeline loads: transforms, or their configs."""
    for step in steps:
        if isinstance(step, LoadLidarSweeps):
            return step.load_dim
        if isinstance(step, Mapping) and step.get("type") == LoadLidarSweeps.__name__:
            return int(step.get("load_dim", _COLUMNS))
    return _COLUMNS


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
