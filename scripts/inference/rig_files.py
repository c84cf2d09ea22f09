"""Recordings in a folder: image files by camera, and one YAML file of calibrations.

    recording/
    ├── rig.yaml
    ├── front/000000.jpg 000001.jpg ...
    └── left/000000.jpg 000001.jpg ...

Images of one frame share their name. `rig.yaml`, lengths in metres, times in seconds:

    frame_rate_hz: 10                # of frames without a time
    cameras:
      front:
        images: front/*.jpg          # default: every image in the folder of the camera's name
        intrinsics: [800, 800, 640, 360]          # fx, fy, cx, cy in pixels, or a matrix [3, 3]
        translation: [1.7, 0.0, 1.5]              # of the camera in the vehicle's frame
        rotation: [0.5, -0.5, 0.5, -0.5]          # quaternion w, x, y, z, or a matrix [3, 3]
    lidar:                           # for models that fuse LiDAR
      points: lidar/*.bin
      translation: [0.9, 0.0, 1.8]
      rotation: [0.7071, 0, 0, -0.7071]
    poses:                           # of the vehicle; without poses it stands still
      "000000": {time_s: 0.0, translation: [0, 0, 0], rotation: [1, 0, 0, 0]}

Cameras look along z, with x to the right and y down. The vehicle's frame has x forward, y to the
left, z up.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from loaders.safe_reading import MIB, FileKind, read_file, reading
from scripts.prediction.errors import FrameError
from scripts.prediction.frames import (
    CameraFrame,
    Frame,
    Matrix,
    intrinsic_matrix,
    pose,
    seconds,
)
from scripts.runtime.settings import did_you_mean

RIG_FILE = "rig.yaml"
_IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".ppm", ".webp", ".tif", ".tiff")
_RIG = FileKind(
    "rig file",
    "write one with the calibration of every camera, see docs/inference.md",
    "see docs/inference.md for its keys",
    max_bytes=64 * MIB,
    error=FrameError,
    missing_error=FrameError,
)
_TOP_KEYS = ("cameras", "frame_rate_hz", "lidar", "poses")
_CAMERA_KEYS = ("images", "intrinsics", "translation", "rotation")
_LIDAR_KEYS = ("points", "translation", "rotation")
_POSE_KEYS = ("time_s", "translation", "rotation")


@dataclass(frozen=True)
class _Camera:
    """Calibration of a camera, and its files by the names of the frames."""

    intrinsics: Matrix
    sensor2ego: Matrix
    files: Mapping[str, Path]


@dataclass(frozen=True)
class _Pose:
    """Time of a frame in seconds, and ego2global [4, 4]."""

    time_s: float
    ego2global: Matrix


@dataclass(frozen=True)
class Recording:
    """Frames of a folder.

    Attributes:
        name: Name of the folder.
        cameras: Names of the cameras, in the order of the rig file.
        frame_names: In the order of their times.
    """

    name: str
    cameras: tuple[str, ...]
    frame_names: tuple[str, ...]
    _rig: Mapping[str, _Camera]
    _rate_hz: float
    _poses: Mapping[str, _Pose]
    _lidar2ego: Matrix | None = None
    _points: Mapping[str, Path] = field(default_factory=dict)

    def __len__(self) -> int:
        """Return the number of frames."""
        return len(self.frame_names)

    def __iter__(self) -> Iterator[Frame]:
        """Return the frames; images are read when they are predicted."""
        return (self.frame(name) for name in self.frame_names)

    def frame(self, name: str) -> Frame:
        """Return one frame by its name, without the cameras that have no image of this name."""
        own = self._poses.get(name)
        time_s = self.frame_names.index(name) / self._rate_hz if own is None else own.time_s
        return Frame(
            {
                camera: CameraFrame(part.files[name], part.intrinsics, part.sensor2ego)
                for camera, part in self._rig.items()
                if name in part.files
            },
            time_s=time_s,
            ego2global=None if own is None else own.ego2global,
            lidar2ego=self._lidar2ego,
            lidar=self._points.get(name),
            name=name,
        )


def read_recording(folder: str | Path, rig_file: str | Path | None = None) -> Recording:
    """Read the frames of a folder and the calibration of its cameras.

    Args:
        folder: See the docstring of this module.
        rig_file: YAML file; None takes `rig.yaml` in the folder.

    Raises:
        FrameError: The rig file is missing or broken (the message names the key), or a camera has
            no image.
    """
    folder = Path(folder)
    path = folder / RIG_FILE if rig_file is None else Path(rig_file)
    content = _read_yaml(path)
    _check_keys(content, _TOP_KEYS, path, "")
    cameras = _mapping(content.get("cameras"), path, "cameras")
    rig = {str(name): _camera(str(name), value, folder, path) for name, value in cameras.items()}
    poses = _read_poses(content.get("poses"), path)
    rate = content.get("frame_rate_hz", 10)
    if isinstance(rate, bool) or not isinstance(rate, (int, float)) or not 0 < rate < float("inf"):
        raise _broken(path, f"frame_rate_hz is {rate!r}, expected a number above 0")
    names = sorted({name for part in rig.values() for name in part.files})
    if poses:
        lacking = [name for name in names if name not in poses]
        if lacking:
            raise _broken(path, f"poses lack frame '{lacking[0]}' (write its name in quotes)")
        names.sort(key=lambda name: poses[name].time_s)
        for first, second in itertools.pairwise(names):
            if poses[first].time_s == poses[second].time_s:
                raise _broken(path, f"poses.{first} and poses.{second} have the same time_s")
    lidar2ego: Matrix | None = None
    points: dict[str, Path] = {}
    if content.get("lidar") is not None:
        lidar2ego, points = _read_lidar(content["lidar"], folder, path)
    return Recording(
        folder.absolute().name, tuple(rig), tuple(names), rig, float(rate), poses, lidar2ego, points
    )


def _camera(name: str, value: Any, folder: Path, path: Path) -> _Camera:
    place = f"cameras.{name}"
    part = _mapping(value, path, place)
    _check_keys(part, _CAMERA_KEYS, path, f"{place}.", required=_CAMERA_KEYS[1:])
    intrinsics = part["intrinsics"]
    if isinstance(intrinsics, Sequence) and len(intrinsics) == 4:
        fx, fy, cx, cy = intrinsics
        intrinsics = [[fx, 0, cx], [0, fy, cy], [0, 0, 1]]
    pattern = part.get("images", f"{name}/*")
    files = _files(folder, pattern, path, f"{place}.images", _IMAGE_SUFFIXES)
    if not files:
        raise _broken(path, f"{place}.images '{pattern}' matches no image in {folder}")
    try:
        matrix = intrinsic_matrix(intrinsics, f"{place}.intrinsics")
    except FrameError as error:
        raise _broken(path, str(error)) from error
    return _Camera(matrix, _pose(part, path, place), files)


def _read_lidar(value: Any, folder: Path, path: Path) -> tuple[Matrix, dict[str, Path]]:
    part = _mapping(value, path, "lidar")
    _check_keys(part, _LIDAR_KEYS, path, "lidar.", required=("translation", "rotation"))
    files: dict[str, Path] = {}
    if "points" in part:
        files = _files(folder, part["points"], path, "lidar.points")
        if not files:
            raise _broken(path, f"lidar.points '{part['points']}' matches no file in {folder}")
    return _pose(part, path, "lidar"), files


def _read_poses(value: Any, path: Path) -> dict[str, _Pose]:
    poses = {}
    for name, part in _mapping(value if value is not None else {}, path, "poses").items():
        place = f"poses.{name}"
        entry = _mapping(part, path, place)
        _check_keys(entry, _POSE_KEYS, path, f"{place}.", required=_POSE_KEYS)
        try:
            seconds(entry["time_s"], f"{place}.time_s")
        except FrameError as error:
            raise _broken(path, str(error)) from error
        poses[str(name)] = _Pose(float(entry["time_s"]), _pose(entry, path, place))
    return poses


def _pose(part: Mapping[str, Any], path: Path, place: str) -> Matrix:
    try:
        return pose(part["translation"], part["rotation"])
    except FrameError as error:
        raise _broken(path, f"{place}: {error}") from error


def _files(
    folder: Path, pattern: Any, path: Path, place: str, suffixes: Sequence[str] = ()
) -> dict[str, Path]:
    """Return the files by their names without ending; `suffixes` limits them."""
    if not isinstance(pattern, str) or Path(pattern).is_absolute() or not pattern:
        raise _broken(path, f"{place} is {pattern!r}, expected a pattern below {folder}")
    with reading(path, _RIG, f"{place} '{pattern}' is not a pattern of file names"):
        found = sorted(folder.glob(pattern))
    files: dict[str, Path] = {}
    for file in found:
        if not file.is_file() or (suffixes and file.suffix.lower() not in suffixes):
            continue
        other = files.setdefault(file.stem, file)
        if other != file:
            raise _broken(
                path, f"{place} '{pattern}' matches two files of one frame, {other}, {file}"
            )
    return files


def _read_yaml(path: Path) -> Mapping[str, Any]:
    data = read_file(path, _RIG)
    with reading(path, _RIG, "is not YAML"):
        content = yaml.safe_load(bytes(data).decode())
    return _mapping(content, path, "the file")


def _mapping(value: Any, path: Path, place: str) -> Mapping[str, Any]:
    if not isinstance(value, Mapping):
        raise _broken(path, f"{place} is {value!r}, expected names with values")
    return value


def _check_keys(
    part: Mapping[str, Any],
    known: Sequence[str],
    path: Path,
    place: str,
    required: Sequence[str] = (),
) -> None:
    for key in part:
        if key not in known:
            hint = did_you_mean(str(key), known)
            raise _broken(path, f"has the unknown key {place}{key}{hint}")
    for key in required:
        if key not in part:
            raise _broken(path, f"lacks {place}{key}")


def _broken(path: Path, problem: str) -> FrameError:
    return FrameError(f"rig file {path}: {problem}: {_RIG.restore}")
