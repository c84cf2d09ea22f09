"""LiDAR points: loading, accumulation over sweeps, range filter. Legend: n points."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from mmengine.logging import print_log
from mmengine.registry import TRANSFORMS

from loaders.errors import BadDataError, LoaderConfigError
from loaders.safe_reading import MIB, FileKind, read_file, truncated
from loaders.sample import LidarFrames, OccSample
from loaders.shared_memory import shared_empty
from loaders.transforms.cache import ArrayCache

Points = npt.NDArray[np.float32]

LOAD_DIMS = (3, 4, 5)  # supported numbers of columns of a file
_COLUMNS = 5  # x, y, z, intensity, ring
_TIME_LAG = 4  # replaces the ring
_LIDAR_FILE = FileKind(
    "LiDAR file",
    "complete the data set, or write the info file for the data you have with "
    "scripts/gen_sweep_info.py",
    "restore it from the original archive",
    max_bytes=64 * MIB,
)
# Upper bound of a LiDAR's range.
_MAX_DISTANCE_M = 1e5
# If a larger share of points is further away, the file does not hold points.
_MAX_SHARE_FAR = 0.1
# Number of files that a process names in warnings, and the files named so far.
_MAX_NOTES = 20
_noted: set[str] = set()
# Rows per inner loop.
_BLOCK_ROWS = 64
# Rows that the check of the columns uses.
_JUDGED_ROWS = 300
# The 99.9 % quantile of chi-squared with 2, 3 and 4 degrees of freedom.
_SIGNIFICANT = {3: 13.8, 4: 16.3, 5: 18.5}


def read_lidar_points(path: str, load_dim: int = _COLUMNS) -> Points:
    """Read a LiDAR file of nuScenes, or one with fewer columns.

    Rows are dropped if x, y, z or intensity is not finite, or if they are further away than 100 km.
    A warning names the file and the number of dropped rows, once per file and only for the first
    files of a process.

    Args:
        path: Raw float32 rows: x, y, z (metres), then intensity, then ring index.
        load_dim: Columns of the file: 3, 4 or 5.

    Returns:
        float32 [n, 5]: x, y, z (metres, frame of the LiDAR at the time of the sweep), intensity,
        ring index. Missing columns are 0.

    Raises:
        MissingDataError: If the file does not exist.
        BadDataError: If it is empty or truncated, has no valid point, or its content does not
            match `load_dim` columns.
    """
    data = read_file(path, _LIDAR_FILE)
    row_bytes = 4 * load_dim
    if not data or len(data) % row_bytes:
        raise truncated(
            path,
            _LIDAR_FILE,
            f"{len(data)} bytes are not a multiple of {row_bytes} per point; for files with other "
            "columns set load_dim of LoadLidarSweeps",
        )
    rows = np.frombuffer(data, dtype="<f4").reshape(-1, load_dim)
    kept = _usable(path, rows, load_dim)
    # Checks all rows: in a file with other columns, infinities can be anywhere.
    _check_columns(path, rows, load_dim)
    if len(kept) < len(rows):
        _note_dropped(path, len(rows) - len(kept), len(rows))
    if load_dim == _COLUMNS:
        return kept
    points = np.zeros((len(kept), _COLUMNS), dtype=np.float32)
    points[:, :load_dim] = kept
    return points


def as_points(rows: npt.ArrayLike, name: str) -> Points:
    """Convert points in memory to the form of `read_lidar_points`.

    Args:
        rows: [n, 3], [n, 4] or [n, 5]: x, y, z in metres, intensity, ring index.
        name: Name of the points in errors.

    Raises:
        BadDataError: If the shape is wrong, or no row is a valid point.
    """
    values = np.asarray(rows)
    if values.ndim != 2 or values.shape[1] not in LOAD_DIMS or values.dtype.kind not in "fiu":
        raise BadDataError(
            f"{name} are {values.dtype} {values.shape}, expected numbers [n, 3], [n, 4] or [n, 5]: "
            "x, y, z in metres, then intensity, then ring"
        )
    if not len(values):
        raise BadDataError(f"{name} are empty: pass at least one point [n, {_COLUMNS}]")
    points = np.zeros((len(values), _COLUMNS), dtype=np.float32)
    points[:, : values.shape[1]] = values
    return _usable(name, points, values.shape[1])


def _usable(path: str, rows: Points, load_dim: int) -> Points:
    """Return the valid rows; raise BadDataError if the rows cannot be points."""
    # All columns at once, in memory order; comparisons with NaN are false.
    flat = rows.reshape(-1)
    if max(float(flat.max()), -float(flat.min())) <= _MAX_DISTANCE_M:
        return rows
    if np.isfinite(rows[:, :4]).all() and np.abs(rows[:, :3]).max() <= _MAX_DISTANCE_M:
        return rows
    finite = np.isfinite(rows[:, :4]).all(axis=1)
    if not finite.any():
        raise _LIDAR_FILE.broken(path, "has no point with finite values")
    near = (np.abs(rows[:, :3]) <= _MAX_DISTANCE_M).all(axis=1)
    if (finite & ~near).sum() > _MAX_SHARE_FAR * finite.sum():
        raise _not_points(path, load_dim, "many lie further away than 100 km")
    kept: Points = rows[finite & near]
    return kept


def _note_dropped(path: str, number: int, total: int) -> None:
    """Log that points were dropped, once per file, for the first files of a process."""
    if path in _noted or len(_noted) >= _MAX_NOTES:
        return
    _noted.add(path)
    last = "; further files like it are not named" if len(_noted) == _MAX_NOTES else ""
    print_log(
        f"LiDAR file {path}: dropped {number} of {total} points, which are not finite or further "
        f"away than 100 km{last}",
        logger="current",
        level=logging.WARNING,
    )


def _not_points(path: str, load_dim: int, why: str) -> BadDataError:
    return BadDataError(
        f"LiDAR file {path} does not hold points of {load_dim} columns ({why}): set load_dim of "
        "LoadLidarSweeps to the columns of the files, or restore it from the original archive"
    )


def _check_columns(path: str, rows: Points, load_dim: int) -> None:
    """Raise BadDataError if a file seems to have another number of columns.

    With a wrong number of columns, every column mixes x, y, z and intensity, so all columns have
    the same distribution. With the right number they differ. If they differ for no number, as in
    random data, the fifth column decides: it must be a ring index or, in other data sets, a time.
    """
    if load_dim == _COLUMNS and _is_plainly_with_ring(rows[:_JUDGED_ROWS]):
        return
    values = np.ascontiguousarray(rows).reshape(-1)
    others = [dim for dim in LOAD_DIMS if dim != load_dim and len(values) % dim == 0]
    if not others or _difference(values, load_dim) > _SIGNIFICANT[load_dim]:
        return
    better = [dim for dim in others if _difference(values, dim) > _SIGNIFICANT[dim]]
    if better:
        raise _not_points(path, load_dim, f"it seems to have {better[-1]} columns")
    if load_dim == _COLUMNS and not _is_ring_or_time(rows[:, 4]):
        raise _not_points(path, load_dim, "the fifth is neither a ring index nor a time")


def _is_plainly_with_ring(rows: Points) -> bool:
    """Return whether the fifth column, and no other, holds integers from 0 to 255."""
    is_whole = ((rows == np.floor(rows)) & (rows >= 0) & (rows <= 255)).mean(axis=0)
    return bool(is_whole[4] == 1 and is_whole[:3].max() < 0.5)


def _difference(values: npt.NDArray[np.float32], columns: int) -> float:
    """Return how much the columns differ in position or in spread.

    This is the larger of two Kruskal-Wallis statistics of the first rows: of the values and of
    their magnitudes.
    """
    values = values[: _JUDGED_ROWS * columns]
    return max(_kruskal_wallis(values, columns), _kruskal_wallis(np.abs(values), columns))


def _kruskal_wallis(values: npt.NDArray[np.float32], columns: int) -> float:
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    ranks = (np.cumsum(counts) - (counts - 1) / 2)[inverse.reshape(-1)]  # ties get their mean rank
    spread = float(((ranks - ranks.mean()) ** 2).sum())
    if not spread:
        return 0.0
    between = (ranks.reshape(-1, columns).mean(axis=0) - ranks.mean()) ** 2
    rows = len(values) // columns
    return (len(values) - 1) * rows * float(between.sum()) / spread


def _is_ring_or_time(column: Points) -> bool:
    """Return whether values are integers, increase, or repeat as the time lags of sweeps do."""
    if not np.isfinite(column).all():
        return False
    is_ring = bool(((column >= 0) & (column == np.floor(column))).all())
    return is_ring or bool((np.diff(column) >= 0).all()) or 4 * len(set(column)) <= len(column)


@TRANSFORMS.register_module()
class LoadLidarSweeps:
    """Load the points of a key frame and its sweeps in the key frame's pose.

    Follows the training of the published OPUS-Fusion: the newest sweeps are added, without the
    points on the vehicle itself; a key frame without sweeps is repeated for each of them. The key
    frame's own points come first and are all kept. The time lag in seconds replaces the ring
    column.

    Does nothing for samples without LiDAR (a data set built with `use_lidar=False`), so one
    pipeline serves models with and without LiDAR.

    Args:
        num_sweeps: Maximum number of sweeps to add.
        close_m: Points of sweeps with both abs(x) and abs(y) below this, in their own LiDAR's
            frame, are dropped.
        lidar_cache_mb: Size of the LiDAR cache of each process, MiB (0.7 MiB per nuScenes file).
        load_dim: Columns of the files: 5 (nuScenes: x, y, z, intensity, ring), 4 or 3. Missing ones
            are 0.
    """

    needs_lidar = True  # removed from a shared pipeline if the data set has no LiDAR

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
        """Set `points` float32 [n, 5], in the frame of the labels."""
        if sample.lidar is None:
            return sample
        sample.points = self.gather(sample.lidar, sample.lidar2occ, self._kept)
        return sample

    def gather(
        self,
        lidar: LidarFrames,
        lidar2occ: npt.NDArray[np.float64],
        points_of: Callable[[LidarFrames, int], Points],
    ) -> Points:
        """Return the points of a key frame and its newest sweeps, float32 [n, 5].

        Args:
            lidar: The key frame's file, then sweeps, newest first.
            lidar2occ: [4, 4], the key frame's lidar frame to the frame of the labels.
            points_of: Returns the points float32 [n, 5] of one row of `lidar`.
        """
        files = []
        for position, row in self._files(lidar):
            points = points_of(lidar, row)
            files.append((self._far_enough(points) if position else points, row))
        gathered = shared_empty((sum(len(points) for points, _ in files), _COLUMNS), np.float32)
        start = 0
        for points, row in files:
            place = gathered[start : start + len(points)]
            move_points(points, lidar2occ @ lidar.sensor2lidar[row], place)
            place[:, _TIME_LAG] = (lidar.timestamps[0] - lidar.timestamps[row]) * 1e-6
            start += len(points)
        return gathered

    def _files(self, lidar: LidarFrames) -> list[tuple[int, int]]:
        """Return (position, row of `lidar`) of the files to load, the key frame first."""
        newest = range(1, min(len(lidar.paths), self.num_sweeps + 1))
        return list(enumerate([0, *(newest or [0] * self.num_sweeps)]))

    def _kept(self, lidar: LidarFrames, row: int) -> Points:
        path = lidar.paths[row]
        (points,) = self._cache.get(path, lambda: [read_lidar_points(path, self.load_dim)])
        return points

    def _far_enough(self, points: Points) -> Points:
        """Return the points that are not on the vehicle."""
        is_close = np.abs(points[:, 0]) < self.close_m
        is_close &= np.abs(points[:, 1]) < self.close_m
        return points[~is_close] if is_close.any() else points


def load_dim_of(steps: Iterable[Any]) -> int:
    """Return the number of columns of LiDAR files that a pipeline (or its configs) loads."""
    for step in steps:
        if isinstance(step, LoadLidarSweeps):
            return step.load_dim
        if isinstance(step, Mapping) and step.get("type") == LoadLidarSweeps.__name__:
            return int(step.get("load_dim", _COLUMNS))
    return _COLUMNS


@TRANSFORMS.register_module()
class FilterPoints:
    """Drop LiDAR points outside a range of the occ frame; do nothing without LiDAR.

    Args:
        point_range: (x0, y0, z0, x1, y1, z1) metres; None uses the range of the grid. The upper
            ends are exclusive.
    """

    needs_lidar = True  # removed from a shared pipeline if the data set has no LiDAR

    def __init__(self, point_range: Sequence[float] | None = None) -> None:
        self.point_range = None if point_range is None else tuple(map(float, point_range))

    def __call__(self, sample: OccSample) -> OccSample:
        """Keep only the points inside the range."""
        if sample.lidar is None:
            return sample
        if sample.points is None:
            raise LoaderConfigError("FilterPoints needs LoadLidarSweeps before it in the pipeline")
        limits = np.asarray(self.point_range or sample.pc_range, dtype=np.float32)
        inside = np.ones(len(sample.points), dtype=np.bool_)
        for axis in range(3):
            column = sample.points[:, axis]
            inside &= column >= limits[axis]
            inside &= column < limits[axis + 3]
        kept = shared_empty((int(np.count_nonzero(inside)), sample.points.shape[1]), np.float32)
        sample.points = np.compress(inside, sample.points, axis=0, out=kept)
        return sample


def move_points(
    points: npt.NDArray[np.float32],
    matrix: npt.NDArray[np.float64],
    out: npt.NDArray[np.float32] | None = None,
) -> npt.NDArray[np.float32]:
    """Apply a matrix [4, 4] to the first 3 columns of points.

    Args:
        points: float32 [n, 3 + C].
        matrix: float64 [4, 4].
        out: float32 [n, 3 + C], written to; None allocates a new array.

    Returns:
        `out`; its other columns equal those in `points`.
    """
    moved = np.empty_like(points) if out is None else out
    # An identity matrix carries the other columns along: one product of whole rows is four times
    # as fast as one of parts of rows. Values that are not finite must stay in their column.
    if points.shape[1] > 3 and moved.flags.c_contiguous and np.isfinite(points.sum()):
        whole = np.eye(points.shape[1], dtype=np.float32)
        whole[:3, :3] = matrix[:3, :3].T
        shift = np.zeros(points.shape[1], dtype=np.float32)
        shift[:3] = matrix[:3, 3]
        np.matmul(points, whole, out=moved)
        _add_to_rows(moved, shift)
        return moved
    rotation, translation = matrix[:3, :3].astype(np.float32), matrix[:3, 3].astype(np.float32)
    moved[:, 3:] = points[:, 3:]
    moved[:, :3] = points[:, :3] @ rotation.T + translation
    return moved


def _add_to_rows(rows: npt.NDArray[np.float32], values: npt.NDArray[np.float32]) -> None:
    """Add values [C] to contiguous rows [n, C]; numpy's inner loop would have only C numbers."""
    blocks = len(rows) // _BLOCK_ROWS
    whole = rows[: blocks * _BLOCK_ROWS].reshape(blocks, _BLOCK_ROWS * rows.shape[1])
    whole += np.tile(values, _BLOCK_ROWS)
    rows[blocks * _BLOCK_ROWS :] += values
