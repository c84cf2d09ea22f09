"""Consistency checks: calibration and images, poses and time, labels and LiDAR.

Legend: M key frames, n camera frames, N cameras, p points.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
import numpy.typing as npt

from loaders.datasets.occupancy_dataset import OccupancyDataset
from loaders.errors import BadDataError, MissingDataError
from loaders.lidar.points import read_lidar_points
from loaders.sample import UNKNOWN_LABEL, OccSample
from scripts.data_checks.infos import Finding, name_of_key_frame

Matrix = npt.NDArray[np.float64]

# Lenses are centred. A decentred principal point means cropping or resizing after calibration.
_MIDDLE_THIRD = (1 / 3, 2 / 3)
# Plausible opening angles of lenses, degrees.
_MIN_ANGLE_DEG, _MAX_ANGLE_DEG = 2.0, 175.0
_MAX_MOUNT_M = 30.0  # largest distance of a sensor from the vehicle's origin
_MAX_ACCELERATION = 20.0  # m/s^2; cars brake with 10
_MAX_TURN_RAD_S = 3.0
_INTERVAL_S = (1e-3, 60.0)  # plausible median interval of key frames
_MOVING_M = 0.5  # least motion between key frames that defines a direction
_MAX_RANGE_M = 1000.0  # largest range of LiDAR returns
_NEAR_M = 3.0  # nearer returns are from the vehicle itself
_MIN_RETURNS = 200
# Smallest share of the LiDAR returns in the grid that must lie in occupied voxels.
_MIN_SHARE, _BETTER = 0.2, 0.1


def check_together(
    dataset: OccupancyDataset, image_hw: Mapping[str, tuple[int, int]]
) -> Iterator[Finding]:
    """Yield contradictions between the parts of an info file; no files are opened.

    Args:
        dataset: Data set built from a config.
        image_hw: Height and width of the images by camera, from the config.
    """
    yield from _check_cameras(dataset, image_hw)
    yield from _check_mounts(dataset)
    scenes = {id(rows): rows for rows in dataset.frames.scene_samples}.values()
    for rows in scenes:
        yield from _check_motion(dataset, rows)
    yield from _check_heading(dataset)
    yield from _check_interval(dataset)


def _check_cameras(
    dataset: OccupancyDataset, image_hw: Mapping[str, tuple[int, int]]
) -> Iterator[Finding]:
    for camera, name in enumerate(dataset.cameras):
        if name not in image_hw:
            continue
        height, width = image_hw[name]
        size = np.array([width, height], dtype=np.float64)
        intrinsic = dataset.frames.cam_intrinsic[:, camera]
        place = intrinsic[:, :2, 2] / size
        off = ~((place >= _MIDDLE_THIRD[0]) & (place <= _MIDDLE_THIRD[1])).all(axis=1)
        if off.any():
            u, v = intrinsic[np.flatnonzero(off)[0], :2, 2]
            yield (
                "calibration",
                "principal point",
                f"{name}: the principal point ({u:.0f}, {v:.0f}) lies outside the middle third of "
                f"{width} x {height} pixels in {off.sum()} frames: images that were resized or "
                "cropped need the calibration of their new size",
            )
        focal = intrinsic[:, [0, 1], [0, 1]]
        with np.errstate(divide="ignore", invalid="ignore"):
            angle = np.degrees(2 * np.arctan(size / 2 / focal))
        strange = (focal > 0).all(axis=1) & (
            (angle > _MAX_ANGLE_DEG) | (angle < _MIN_ANGLE_DEG)
        ).any(axis=1)
        if strange.any():
            yield (
                "calibration",
                "focal length",
                f"{name}: a focal length of {focal[strange][0, 0]:.4g} pixels means "
                f"an opening angle of {angle[strange][0, 0]:.4g} degrees: give it in pixels",
            )


def _check_mounts(dataset: OccupancyDataset) -> Iterator[Finding]:
    """Yield sensors far from their vehicle: wrong units, or poses in different frames."""
    frames, key = dataset.frames, dataset.frames.key_frame
    offset = frames.sensor2global_translation[key] - dataset.ego2global[:, None, :3, 3]
    far = np.linalg.norm(offset, axis=-1)
    lidar = np.linalg.norm(dataset.lidar2ego[:, :3, 3], axis=-1)
    everything = [(name, far[:, camera]) for camera, name in enumerate(dataset.cameras)]
    for name, distance in [*everything, ("the LiDAR", lidar)]:
        row = int(np.argmax(np.nan_to_num(distance)))
        if distance[row] > _MAX_MOUNT_M:
            yield (
                "pose",
                "sensor off the vehicle",
                f"{name} is {distance[row]:.4g} m from the vehicle at "
                f"{name_of_key_frame(dataset, row)}: poses must be in metres and in one frame",
            )


def _check_motion(dataset: OccupancyDataset, rows: npt.NDArray[np.int64]) -> Iterator[Finding]:
    seconds = np.maximum(np.diff(dataset.timestamps[rows]) * 1e-6, 1e-6)
    poses = dataset.ego2global[rows]
    velocity = np.diff(poses[:, :3, 3], axis=0) / seconds[:, None]
    change = np.linalg.norm(np.diff(velocity, axis=0), axis=1)
    span = (seconds[1:] + seconds[:-1]) / 2
    for i in np.flatnonzero(change > _MAX_ACCELERATION * span):
        yield (
            "pose",
            "jump",
            f"the velocity changes by {change[i]:.1f} m/s in {span[i]:.2f} s around "
            f"{name_of_key_frame(dataset, int(rows[i + 1]))}",
        )
    turn = np.swapaxes(poses[:-1, :3, :3], -1, -2) @ poses[1:, :3, :3]
    cosine = (np.trace(turn, axis1=-2, axis2=-1) - 1) / 2
    angle = np.arccos(np.clip(cosine, -1, 1))
    for i in np.flatnonzero(angle > np.minimum(_MAX_TURN_RAD_S * seconds, math.pi * 0.9)):
        yield (
            "pose",
            "jump",
            f"the vehicle turns by {np.degrees(angle[i]):.0f} degrees in {seconds[i]:.2f} s before "
            f"{name_of_key_frame(dataset, int(rows[i + 1]))}",
        )


def _check_heading(dataset: OccupancyDataset) -> Iterator[Finding]:
    """Find a vehicle that drives sideways or backwards: wrong quaternion order or wrong axes."""
    steps = []
    for rows in {id(rows): rows for rows in dataset.frames.scene_samples}.values():
        poses = dataset.ego2global[rows]
        moved = np.diff(poses[:, :3, 3], axis=0)
        steps.append(np.einsum("nji,nj->ni", poses[:-1, :3, :3], moved))  # in the ego frame
    step = np.concatenate(steps)
    step = step[np.linalg.norm(step, axis=1) > _MOVING_M]
    sideways = (step[:, 0] < np.linalg.norm(step[:, 1:], axis=1)).mean() if len(step) else 0
    if sideways > 0.5:
        yield (
            "pose",
            "not driving forward",
            f"in {sideways:.0%} of the steps between key frames the vehicle moves across or "
            "against its x axis: rotations are quaternions (w, x, y, z), and x points forward",
        )


def _check_interval(dataset: OccupancyDataset) -> Iterator[Finding]:
    scenes = {id(rows): rows for rows in dataset.frames.scene_samples}.values()
    intervals = [np.diff(dataset.timestamps[rows]) * 1e-6 for rows in scenes if len(rows) > 1]
    if not intervals:
        return
    median = float(np.median(np.concatenate(intervals)))
    if not _INTERVAL_S[0] <= median <= _INTERVAL_S[1]:
        yield (
            "time stamp",
            "unit",
            f"key frames are {median:.4g} s apart: time stamps must be in microseconds",
        )


def check_labels_at_returns(
    dataset: OccupancyDataset, sample: OccSample, load_dim: int
) -> Iterator[Finding]:
    """Yield a finding if a sample's labels do not agree with its LiDAR returns.

    Nothing is yielded without a LiDAR file, or with few returns in the grid.

    Args:
        dataset: Data set of the sample.
        sample: Sample with labels.
        load_dim: Columns of the LiDAR files.
    """
    path = dataset.lidar_path(sample.sample_idx)
    if sample.voxel_semantics is None or path is None or not Path(path).is_file():
        return
    try:
        points = read_lidar_points(path, load_dim)[:, :3].astype(np.float64)
    except (MissingDataError, BadDataError):
        return  # reported by the LiDAR check
    distance = np.linalg.norm(points, axis=1)
    if len(points) and not 0.1 < np.median(distance) < _MAX_RANGE_M:
        median = np.median(distance)
        sentence = (
            f"{path}: the median range of returns is {median:.4g} m: points must be in metres"
        )
        yield "LiDAR", "unit", sentence
        return
    points = points[distance > _NEAR_M]
    own = _share(points, sample, sample.lidar2occ)
    if own is None:
        return
    others = {what: _share(points, sample, matrix) for what, matrix in _other_frames(sample)}
    best, share = max(((what, value or 0.0) for what, value in others.items()), key=lambda x: x[1])
    if own < _MIN_SHARE or share > own + _BETTER:
        hint = f"; it is {share:.0%} {best}" if share > own + _BETTER else ""
        yield (
            "labels",
            "off the LiDAR returns",
            f"{own:.0%} of the returns of {path} lie in labelled voxels{hint}: correct the frame, "
            "the range or the axes of the grid, or the poses",
        )


def _share(points: Matrix, sample: OccSample, lidar2occ: Matrix) -> float | None:
    """Return the share of the grid's returns in occupied voxels; None if there are too few."""
    grid = sample.voxel_semantics
    assert grid is not None
    moved = points @ lidar2occ[:3, :3].T + lidar2occ[:3, 3]
    voxel = np.floor((moved - sample.pc_range[:3]) / np.array(sample.voxel_size)).astype(np.int64)
    voxel = voxel[((voxel >= 0) & (voxel < grid.shape)).all(axis=1)]
    label = grid[tuple(voxel.T)]
    label = label[label != UNKNOWN_LABEL]
    if len(label) < _MIN_RETURNS:
        return None
    return float((label < len(sample.class_names)).mean())


def _other_frames(sample: OccSample) -> Iterator[tuple[str, Matrix]]:
    """Yield other possible frames of a grid, with the matrix from the LiDAR frame."""
    for what, matrix in (("the LiDAR's", np.eye(4)), ("the vehicle's", sample.lidar2ego)):
        if np.abs(matrix - sample.lidar2occ).max() > 1e-6:
            yield f"if the grid is in {what} frame", matrix
    for what, axes in (
        ("rotated by 90 degrees", [[0, -1, 0], [1, 0, 0], [0, 0, 1]]),
        ("rotated by 180 degrees", [[-1, 0, 0], [0, -1, 0], [0, 0, 1]]),
        ("rotated by 270 degrees", [[0, 1, 0], [-1, 0, 0], [0, 0, 1]]),
        ("with x and y exchanged", [[0, 1, 0], [1, 0, 0], [0, 0, 1]]),
        ("with y mirrored", [[1, 0, 0], [0, -1, 0], [0, 0, 1]]),
        ("with x mirrored", [[-1, 0, 0], [0, 1, 0], [0, 0, 1]]),
    ):
        turn = np.eye(4)
        turn[:3, :3] = axes
        yield f"if the grid is {what}", turn @ sample.lidar2occ
