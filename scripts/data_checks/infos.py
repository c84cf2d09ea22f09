"""Checks of an info file: poses, calibration, time stamps, tokens. No files are opened.

Legend: M key frames, n camera frames (oldest first within a scene), N cameras.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt

from loaders.datasets.occupancy_dataset import OccupancyDataset
from loaders.info_io import content_hash, load_infos

Finding = tuple[str, str, str]

# Rotations are stored in double precision; single precision is tolerated.
_ROTATION_TOLERANCE = 1e-4
# nuScenes' cars are slower; a jump of the pose appears as a higher speed.
_MAX_SPEED_M_S = 50.0
# A key frame's images are taken within half a revolution of the LiDAR (20 per second).
_MAX_CAMERA_LAG_S = 0.25


def check_info_file(dataset: OccupancyDataset) -> Iterator[Finding]:
    """Yield findings about the header and the tokens of a data set's info file."""
    content = load_infos(dataset.ann_file)
    meta, name = content.metadata, dataset.ann_file
    if "content_hash" in meta and "content_bytes" in meta:
        if content_hash(name, meta) != meta["content_hash"]:
            yield (
                "info file",
                "changed",
                f"{name} was changed after it was written (its hash differs)",
            )
    if meta.get("num_samples", len(content.infos)) != len(content.infos):
        yield (
            "info file",
            "changed",
            f"{name} has {len(content.infos)} samples, its header has {meta['num_samples']}",
        )
    for token, count in Counter(info["token"] for info in content.infos).items():
        if count > 1:
            yield "info file", "duplicate", f"{name} has key frame {token} {count} times"


def check_frames(dataset: OccupancyDataset) -> Iterator[Finding]:
    """Yield findings about poses, calibration and time stamps of all samples."""
    yield from _check_cameras(dataset)
    yield from _check_ego(dataset)
    if dataset.lidar is not None:
        yield from _check_lidar(dataset)


def _bad_rotations(rotation: npt.NDArray[np.float64]) -> npt.NDArray[np.bool_]:
    """Return which of the matrices [..., 3, 3] are not rotations."""
    product = rotation @ np.swapaxes(rotation, -1, -2)
    off = np.abs(product - np.eye(3)).max(axis=(-1, -2))
    # Comparisons with NaN are false, so NaN is reported.
    return ~((off < _ROTATION_TOLERANCE) & (np.linalg.det(np.nan_to_num(rotation)) > 0))


def _check_cameras(dataset: OccupancyDataset) -> Iterator[Finding]:
    frames = dataset.frames
    bad = _bad_rotations(frames.sensor2global_rotation)
    bad |= ~np.isfinite(frames.sensor2global_translation).all(axis=-1)
    focal = np.diagonal(frames.cam_intrinsic, axis1=-2, axis2=-1)
    bad_focal = ~((focal > 0).all(axis=-1) & np.isfinite(frames.cam_intrinsic).all(axis=(-1, -2)))
    for kind, mask, what in (
        ("no rotation or position", bad, "pose"),
        ("no focal length", bad_focal, "calibration"),
    ):
        for row, camera in np.argwhere(mask):
            yield what, kind, f"camera of {frames.paths[row, camera].decode()}"
    # Within a scene, each camera's frames are listed oldest first; sweeps may repeat.
    same_scene = np.ones(max(len(frames.paths) - 1, 0), dtype=bool)
    same_scene[frames.scene_first[frames.scene_first > 0] - 1] = False
    backwards = (np.diff(frames.timestamps, axis=0) < 0) & same_scene[:, None]
    for row, camera in np.argwhere(backwards):
        older, newer = (frames.paths[r, camera].decode() for r in (row, row + 1))
        yield "time stamp", "out of order", f"{newer} is listed after {older}, but is older"


def _check_ego(dataset: OccupancyDataset) -> Iterator[Finding]:
    for name, poses in (("ego2global", dataset.ego2global), ("lidar2ego", dataset.lidar2ego)):
        bad = ~np.isfinite(poses).all(axis=(1, 2)) | _bad_rotations(poses[:, :3, :3])
        for row in np.flatnonzero(bad):
            yield "pose", "no rotation or position", f"{name} of {name_of_key_frame(dataset, row)}"
    times = dataset.timestamps
    lag = np.abs(dataset.frames.timestamps[dataset.frames.key_frame] - times[:, None]) * 1e-6
    for row, camera in np.argwhere(lag > _MAX_CAMERA_LAG_S):
        path = dataset.frames.paths[dataset.frames.key_frame[row], camera].decode()
        sentence = f"{path} is {lag[row, camera]:.2f} s off its key frame"
        yield "time stamp", "far from the key frame", sentence
    for scene in {id(s): s for s in dataset.frames.scene_samples}.values():
        step = np.linalg.norm(np.diff(dataset.ego2global[scene, :3, 3], axis=0), axis=1)
        seconds = np.diff(times[scene]) * 1e-6
        for i in np.flatnonzero(~(step <= _MAX_SPEED_M_S * np.maximum(seconds, 1e-6))):
            where = name_of_key_frame(dataset, scene[i + 1])
            sentence = f"{step[i]:.1f} m in {seconds[i]:.2f} s before {where}"
            yield "pose", "jump", sentence


def name_of_key_frame(dataset: OccupancyDataset, row: int) -> str:
    """Return a name for a key frame: its files contain the scene and the time."""
    path = dataset.frames.paths[dataset.frames.key_frame[row], 0].decode()
    return f"key frame {row} ({path})"


def _check_lidar(dataset: OccupancyDataset) -> Iterator[Finding]:
    table: Any = dataset.lidar
    matrices = table.sensor2lidar
    bad = ~np.isfinite(matrices).all(axis=(1, 2)) | _bad_rotations(matrices[:, :3, :3])
    for row in np.flatnonzero(bad):
        yield "pose", "no rotation or position", f"LiDAR sweep {table.paths[row].decode()}"
    for first, last in zip(table.first[:-1], table.first[1:], strict=True):
        for row in first + np.flatnonzero(np.diff(table.timestamps[first:last]) >= 0):
            older, newer = table.paths[row + 1].decode(), table.paths[row].decode()
            sentence = f"LiDAR sweep {older} is listed as older than {newer}, but is not"
            yield "time stamp", "out of order", sentence
