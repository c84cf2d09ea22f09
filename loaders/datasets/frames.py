"""Camera frames of a data set in arrays, and the selection of a sample's history from them.

Legend: M key frames (samples), n camera frames (key frames and sweeps), N cameras, T frames of a
sample (current first).
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from loaders.errors import BadDataError
from loaders.info_io import DataPaths

# History of the published tool chain: 25 key frames with 5 sweeps each.
MAX_HISTORY = 150


def history_offsets(
    available: int,
    num_frames: int,
    rng: np.random.Generator | None,
    train_interval: tuple[int, int] = (4, 8),
    test_interval: int = 6,
) -> list[int]:
    """Return the frames of a sample, as numbers of camera frames before the current one.

    Args:
        available: Number of older frames in the scene (at most `MAX_HISTORY` are used).
        num_frames: T, the current frame included.
        rng: Draws the interval in training; None means evaluation.
        train_interval: Smallest and largest interval in training. Both are lowered if the history
            is too short; a history with fewer frames than requested is used whole.
        test_interval: Interval in evaluation; positions beyond the oldest frame repeat it.

    Returns:
        T offsets in non-decreasing order, the first 0. Without history all are 0.
    """
    available, wanted = min(available, MAX_HISTORY), num_frames - 1
    if available == 0 or wanted == 0:
        return [0] * num_frames
    if rng is None:
        interval = test_interval
    else:
        longest = max(1, available // wanted)
        low, high = (min(end, longest) for end in train_interval)
        interval = int(rng.integers(low, high + 1))
    return [0, *(min((k + 1) * interval, available) for k in range(wanted))]


@dataclass(frozen=True)
class FrameTable:
    """Camera frames of all scenes, oldest first within a scene: older frames have smaller rows.

    All values are in numpy arrays, which worker processes share without copies.

    Attributes:
        paths: bytes (UTF-8) [n, N], relative to the data root if possible.
        timestamps: int64 [n, N], microseconds.
        cam_intrinsic: float64 [n, N, 3, 3], pixels.
        sensor2global_rotation: float64 [n, N, 3, 3], p_global = R @ p_sensor + t.
        sensor2global_translation: float64 [n, N, 3], metres.
        key_frame: int64 [M], row of each key frame, in the order of the info file.
        scene_first: int64 [M], first row of each key frame's scene.
        scene_samples: For each key frame the key frames of its scene, in time order (shared lists).
    """

    paths: npt.NDArray[np.bytes_]
    timestamps: npt.NDArray[np.int64]
    cam_intrinsic: npt.NDArray[np.float64]
    sensor2global_rotation: npt.NDArray[np.float64]
    sensor2global_translation: npt.NDArray[np.float64]
    key_frame: npt.NDArray[np.int64]
    scene_first: npt.NDArray[np.int64]
    scene_samples: list[npt.NDArray[np.int64]]

    def available_history(self, sample: int) -> int:
        """Return how many frames of the scene are older than key frame `sample`."""
        return int(self.key_frame[sample] - self.scene_first[sample])


def build_frame_table(
    infos: Sequence[Mapping[str, Any]],
    cameras: Sequence[str],
    data_root: str | os.PathLike[str] | None = None,
) -> FrameTable:
    """Put the camera frames of an info file into arrays.

    Args:
        infos: Key frames, checked by `loaders.info_io.load_infos`. Key frames of a scene need not
            be consecutive; they are ordered by time.
        cameras: Names of the N cameras in the desired order.
        data_root: Folder of the data set, see `loaders.info_io.DataPaths`.

    Raises:
        BadDataError: If a key frame lacks a camera.
    """
    scenes: dict[str, list[int]] = {}
    for i, info in enumerate(infos):
        scenes.setdefault(info["scene_token"], []).append(i)
    frames: list[list[Mapping[str, Any]]] = []
    key_frame, scene_first = np.zeros((2, len(infos)), dtype=np.int64)
    scene_samples: list[npt.NDArray[np.int64]] = [np.zeros(0, dtype=np.int64)] * len(infos)
    for members in scenes.values():
        members.sort(key=lambda i: infos[i]["timestamp"])
        first, shared = len(frames), np.array(members, dtype=np.int64)
        for i in members:
            frames += _frames_up_to_key(infos[i], cameras)
            key_frame[i], scene_first[i], scene_samples[i] = len(frames) - 1, first, shared
    return FrameTable(
        **_stack_frames(frames, DataPaths(data_root)),
        key_frame=key_frame,
        scene_first=scene_first,
        scene_samples=scene_samples,
    )


def _frames_up_to_key(
    info: Mapping[str, Any], cameras: Sequence[str]
) -> list[list[Mapping[str, Any]]]:
    """Return the sweeps before a key frame, then the key frame: oldest first, N cameras each."""
    missing = [name for name in cameras if name not in info["cams"]]
    if missing:
        raise BadDataError(
            f"key frame {info['token']} has no camera {missing[0]}, but {', '.join(info['cams'])}: "
            "set cameras in the config to those in the data, or write the info file again with "
            "scripts/gen_sweep_info.py"
        )
    newest_first = [[info["cams"][name] for name in cameras]]
    for sweep in info["cam_sweeps"]:
        complete = all(name in sweep for name in cameras)
        # A sweep that lacks a camera repeats the previous sweep, as in the published loader.
        newest_first.append([sweep[name] for name in cameras] if complete else newest_first[-1])
    return newest_first[::-1]


def _stack_frames(
    frames: Sequence[Sequence[Mapping[str, Any]]], data_path: DataPaths
) -> dict[str, Any]:
    flat = [cam for frame in frames for cam in frame]
    lead = (len(frames), len(frames[0]) if frames else 0)

    def gather(key: str, shape: tuple[int, ...]) -> npt.NDArray[np.float64]:
        values = np.array([cam[key] for cam in flat], dtype=np.float64)
        return values.reshape(*lead, *shape)

    paths = [data_path(str(cam["data_path"])).encode() for cam in flat]
    stored_rotation = gather("sensor2global_rotation", (3, 3))
    return {
        "paths": np.array(paths, dtype=np.bytes_).reshape(lead),
        "timestamps": np.array([int(cam["timestamp"]) for cam in flat], np.int64).reshape(lead),
        "cam_intrinsic": gather("cam_intrinsic", (3, 3)),
        # Info files hold the transpose (row vectors times matrix).
        "sensor2global_rotation": np.ascontiguousarray(np.swapaxes(stored_rotation, -1, -2)),
        "sensor2global_translation": gather("sensor2global_translation", (3,)),
    }
