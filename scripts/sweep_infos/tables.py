"""The parts of nuScenes' tables that info files need, with little memory.

The devkit holds every record of every table as Python objects, which takes several gigabytes for
trainval. Here, the two large tables are streamed into arrays, and of the other tables only small
ones are read; this takes a few hundred megabytes.

Legend: n camera and LiDAR records (`sample_data`), sorted by scene, channel and time.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from loaders.errors import BadDataError, MissingDataError
from loaders.info_io import CAMERAS
from loaders.transforms.geometry import quaternion_to_matrix
from models.errors import UserError
from scripts.runtime.errors import ConfigError
from scripts.sweep_infos.json_stream import iter_records

LIDAR = "LIDAR_TOP"
_CHUNK_RECORDS = 100_000
_LONGEST_NAME = 1024
# Keys of the tables' records that infos need.
_KEYS = {
    "scene": ("token", "name"),
    "sample": ("token", "timestamp", "scene_token"),
    "sensor": ("token", "channel"),
    "calibrated_sensor": ("token", "sensor_token", "rotation", "translation", "camera_intrinsic"),
    "sample_data": (
        "token",
        "sample_token",
        "ego_pose_token",
        "calibrated_sensor_token",
        "timestamp",
        "is_key_frame",
        "filename",
    ),
    "ego_pose": ("token", "rotation", "translation"),
}


@dataclass(frozen=True)
class Mount:
    """Calibration of a sensor on a vehicle.

    Attributes:
        channel: Index into `Tables.channels`, -1 for other sensors.
        rotation_wxyz: Quaternion sensor to ego, as stored.
        rotation: float64 [3, 3], p_ego = R @ p_sensor + t.
        translation: float64 [3], metres.
        intrinsic: float64 [3, 3], pixels; [0, 0] for a LiDAR.
    """

    channel: int
    rotation_wxyz: Sequence[float]
    rotation: npt.NDArray[np.float64]
    translation: npt.NDArray[np.float64]
    intrinsic: npt.NDArray[np.float64]


@dataclass(frozen=True)
class Frames:
    """Camera and LiDAR records, all of length n.

    Attributes:
        scene: int32, index into `Tables.scenes`.
        channel: int16, index into `Tables.channels`.
        timestamp: int64, microseconds.
        sample: int32, index of the key frame it is assigned to.
        is_key: bool.
        mount: int32, index into `Tables.mounts`.
        filename: bytes, relative to the data root.
        token: bytes, of the record.
        ego_rotation_wxyz: float64 [n, 4], ego to global.
        ego_translation: float64 [n, 3], metres.
    """

    scene: npt.NDArray[np.int32]
    channel: npt.NDArray[np.int16]
    timestamp: npt.NDArray[np.int64]
    sample: npt.NDArray[np.int32]
    is_key: npt.NDArray[np.bool_]
    mount: npt.NDArray[np.int32]
    filename: npt.NDArray[np.bytes_]
    token: npt.NDArray[np.bytes_]
    ego_rotation_wxyz: npt.NDArray[np.float64]
    ego_translation: npt.NDArray[np.float64]

    def rows(self, scene: int, channel: int) -> range:
        """Return the rows of a channel in a scene, in time order."""
        low, high = np.searchsorted(self.scene, [scene, scene + 1])
        channels = self.channel[low:high]
        first, last = np.searchsorted(channels, [channel, channel + 1])
        return range(int(low + first), int(low + last))


@dataclass(frozen=True)
class Tables:
    """Content of the tables for info files.

    Attributes:
        data_root: Folder of the data set.
        version: Name of the table folder.
        scenes: Records of the table `scene`.
        samples: For each scene, its key frames (records of `sample`) in time order.
        sample_index: Index of a key frame by its token, over all scenes.
        mounts: Calibrations.
        frames: Camera and LiDAR records.
        cameras: Names of the cameras.
        lidar: Name of the LiDAR; None if there is none.
    """

    data_root: Path
    version: str
    scenes: list[dict[str, Any]]
    samples: list[list[dict[str, Any]]]
    sample_index: Mapping[str, int]
    mounts: list[Mount]
    frames: Frames
    cameras: tuple[str, ...]
    lidar: str | None

    @property
    def channels(self) -> tuple[str, ...]:
        """Names of the cameras, followed by the LiDAR."""
        return (*self.cameras, *([] if self.lidar is None else [self.lidar]))


def open_tables(
    data_root: Path,
    version: str,
    progress: bool = False,
    cameras: Sequence[str] | None = None,
    lidar: str | None = None,
) -> Tables:
    """Read the tables of a folder in nuScenes' format.

    Args:
        data_root: The folder.
        version: Name of the folder with the tables in it.
        progress: Whether to show progress bars.
        cameras: Channels of the cameras; None selects all calibrated cameras, nuScenes' cameras
            first.
        lidar: Channel of the LiDAR; None selects the only one, or `LIDAR_TOP` of several.

    Raises:
        ConfigError: The tables do not have these channels, or the LiDAR is ambiguous.
        MissingDataError: The folder, the version, or one of its tables does not exist.
        BadDataError: A table is invalid, or refers to records that another table lacks.
    """
    if not data_root.is_dir():
        raise MissingDataError(
            f"data root {data_root} does not exist: put (or link) nuScenes there, or make a toy "
            "data set with scripts/make_toy_nuscenes.py"
        )
    folder = data_root / version
    if not folder.is_dir():
        found = sorted(path.parent.name for path in data_root.glob("*/scene.json"))
        raise MissingDataError(
            f"{folder} does not exist: choose an existing --version "
            f"({', '.join(found) or 'no folder with nuScenes tables'})"
        )
    try:
        scenes = list(_records(folder, "scene"))
        samples = _samples_by_scene(scenes, _records(folder, "sample"))
        index = {
            record["token"]: i for i, record in enumerate(r for scene in samples for r in scene)
        }
        cameras, lidar = _choose_channels(folder, cameras, lidar)
        channels = (*cameras, *([] if lidar is None else [lidar]))
        mounts, mount_index = _read_mounts(folder, channels)
        scene_of_sample = np.repeat(np.arange(len(scenes)), [len(scene) for scene in samples])
        frames = _read_frames(folder, index, scene_of_sample, mounts, mount_index, progress)
    except UserError:
        raise
    except Exception as error:  # values of any wrong type, in any of the tables
        raise BadDataError(
            f"the tables in {folder} cannot be read ({type(error).__name__}: {error}): restore "
            "them from the original archive"
        ) from error
    return Tables(data_root, version, scenes, samples, index, mounts, frames, cameras, lidar)


def _records(folder: Path, table: str, progress: bool = False) -> Iterator[dict[str, Any]]:
    """Yield the records of a table, checked to have the needed keys."""
    return iter_records(folder / f"{table}.json", progress, _KEYS[table])


def _samples_by_scene(
    scenes: Sequence[Mapping[str, Any]], samples: Iterable[dict[str, Any]]
) -> list[list[dict[str, Any]]]:
    """Return the key frames of each scene, in time order."""
    grouped: dict[str, list[dict[str, Any]]] = {scene["token"]: [] for scene in scenes}
    for sample in samples:
        grouped[sample["scene_token"]].append(sample)
    return [sorted(group, key=lambda sample: sample["timestamp"]) for group in grouped.values()]


def _choose_channels(
    folder: Path, cameras: Sequence[str] | None, lidar: str | None
) -> tuple[tuple[str, ...], str | None]:
    """Return the channels of the cameras, and of the LiDAR if there is one."""
    used = {record["sensor_token"] for record in _records(folder, "calibrated_sensor")}
    sensors = [record for record in _records(folder, "sensor") if record["token"] in used]
    # Old tables may lack the modality.
    kinds: dict[str, list[str]] = {"camera": [], "lidar": []}
    for record in sensors:
        channel = str(record["channel"])
        kind = record.get("modality") or ("camera" if channel.startswith("CAM") else "lidar")
        if channel not in kinds.setdefault(kind, []):
            kinds[kind].append(channel)
    if cameras is None:
        own = [name for name in kinds["camera"] if name not in CAMERAS]
        cameras = [*(name for name in CAMERAS if name in kinds["camera"]), *own]
    if lidar is None and kinds["lidar"]:
        lidar = kinds["lidar"][0] if len(kinds["lidar"]) == 1 else LIDAR
    wanted = [("--cameras", name, "camera") for name in cameras]
    wanted += [] if lidar is None else [("--lidar", lidar, "lidar")]
    for option, name, kind in wanted:
        if name not in kinds[kind]:
            raise ConfigError(
                f"the tables in {folder} have no calibrated {kind} {name}: set {option} to "
                f"an existing channel ({', '.join(kinds[kind]) or f'there is no {kind}'})"
            )
    if not cameras or len(set(cameras)) != len(cameras):
        raise ConfigError(f"--cameras {' '.join(cameras)}: give one camera at least, each once")
    return tuple(cameras), lidar


def _read_mounts(folder: Path, channels: Sequence[str]) -> tuple[list[Mount], dict[str, int]]:
    """Return the calibrations and their indices by token."""
    channel_of = {
        record["token"]: channels.index(record["channel"]) if record["channel"] in channels else -1
        for record in _records(folder, "sensor")
    }
    mounts: list[Mount] = []
    index: dict[str, int] = {}
    for record in _records(folder, "calibrated_sensor"):
        index[record["token"]] = len(mounts)
        intrinsic = np.array(record["camera_intrinsic"] or np.zeros((0, 0)), dtype=np.float64)
        rotation = quaternion_to_matrix(record["rotation"])
        translation = np.array(record["translation"], dtype=np.float64)
        channel = channel_of[record["sensor_token"]]
        mounts.append(Mount(channel, record["rotation"], rotation, translation, intrinsic))
    return mounts, index


def _read_frames(
    folder: Path,
    sample_index: Mapping[str, int],
    scene_of_sample: npt.NDArray[np.integer[Any]],
    mounts: Sequence[Mount],
    mount_index: Mapping[str, int],
    progress: bool,
) -> Frames:
    def wanted() -> Iterator[tuple[Any, ...]]:
        for record in _records(folder, "sample_data", progress):
            mount = mount_index[record["calibrated_sensor_token"]]
            if mounts[mount].channel >= 0:
                yield (
                    sample_index[record["sample_token"]],
                    record["timestamp"],
                    bool(record["is_key_frame"]),
                    mount,
                    _name(record["filename"]),
                    _name(record["token"]),
                    _name(record["ego_pose_token"]),
                )

    dtypes = (np.int32, np.int64, np.bool_, np.int32, np.bytes_, np.bytes_, np.bytes_)
    sample, timestamp, is_key, mount, filename, token, pose_token = _columns(wanted(), dtypes)
    scene = scene_of_sample[sample].astype(np.int32)
    channel = np.array([m.channel for m in mounts], dtype=np.int16)[mount]
    order = np.lexsort((timestamp, channel, scene))
    rotation, translation = _read_poses(folder, pose_token[order], progress)
    return Frames(
        scene[order],
        channel[order],
        timestamp[order],
        sample[order],
        is_key[order],
        mount[order],
        filename[order],
        token[order],
        rotation,
        translation,
    )


def _name(text: str) -> bytes:
    """Return a token or file name as bytes; arrays have the width of the longest name."""
    if len(text) > _LONGEST_NAME:
        raise ValueError(f"a name of {len(text)} characters")
    return text.encode()


def _columns(rows: Iterator[tuple[Any, ...]], dtypes: Sequence[Any]) -> list[npt.NDArray[Any]]:
    """Collect tuples in arrays, one per column, holding only few Python objects at a time."""
    chunks: list[list[npt.NDArray[Any]]] = [[np.zeros(0, dtype)] for dtype in dtypes]
    buffer: list[tuple[Any, ...]] = []

    def flush() -> None:
        for parts, values, dtype in zip(chunks, zip(*buffer, strict=True), dtypes, strict=False):
            parts.append(np.array(values, dtype=dtype))
        buffer.clear()

    for row in rows:
        buffer.append(row)
        if len(buffer) == _CHUNK_RECORDS:
            flush()
    if buffer:
        flush()
    columns = []
    while chunks:
        columns.append(np.concatenate(chunks.pop(0)))
    return columns


def _read_poses(
    folder: Path, tokens: npt.NDArray[np.bytes_], progress: bool
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """Return quaternions [n, 4] and translations [n, 3] of the poses with these tokens."""
    unique, inverse = np.unique(tokens, return_inverse=True)
    poses = np.full((len(unique), 7), np.nan)

    def flush(names: list[bytes], values: list[Sequence[float]]) -> None:
        at = np.minimum(np.searchsorted(unique, names), len(unique) - 1)
        known = unique[at] == np.array(names)
        poses[at[known]] = np.array(values)[known]
        names.clear()
        values.clear()

    names: list[bytes] = []
    values: list[Sequence[float]] = []
    for record in _records(folder, "ego_pose", progress):
        names.append(_name(record["token"]))
        values.append((*record["rotation"], *record["translation"]))
        if len(names) == _CHUNK_RECORDS:
            flush(names, values)
    if names and len(unique):
        flush(names, values)
    lacking = np.flatnonzero(np.isnan(poses).any(axis=1))
    if len(lacking):
        raise BadDataError(
            f"the table {folder / 'ego_pose.json'} lacks {len(lacking)} poses that "
            f"sample_data.json names (the first: {unique[lacking[0]].decode()}): restore the "
            "tables from the original archive"
        )
    return poses[inverse, :4], poses[inverse, 4:]
