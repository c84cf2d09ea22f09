"""Fuzzing of all file readers: damaged files must cause one of the project's own errors."""

from __future__ import annotations

import io
import json
import math
import pickle
import tempfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from loaders.datasets.frames import build_frame_table
from loaders.info_io import load_infos
from loaders.lidar.frames import build_lidar_table
from loaders.lidar.points import LOAD_DIMS, read_lidar_points
from loaders.metrics.ray_cache import read_rays
from loaders.predictions import load_prediction
from loaders.sample import OccSample
from loaders.transforms.decode import decode_image_part, read_image, read_image_file
from loaders.transforms.geometry import ego2img_from_poses, quaternion_to_matrix
from loaders.transforms.labels import LoadOcc3DLabels
from loaders.transforms.occupancy_labels import LoadOccupancyLabels
from models.errors import UserError
from scripts.fuzzing.corruption import Rng, damaged, with_wrong_value
from scripts.runtime.checkpoint import read_checkpoint
from scripts.sweep_infos.tables import open_tables

# Errors that a call may raise; all others are findings.
ALLOWED: tuple[type[BaseException], ...] = (UserError,)

_IMAGE_HW = (33, 61)
_CLASSES = ("car", "bus", "road")
_FREE = len(_CLASSES)
_GRID = (10, 8, 4)
_RANGE = (-2.0, -1.6, -0.4, 2.0, 1.6, 1.2)
_VOXEL = (0.4, 0.4, 0.4)
_CAMERA = "CAM_FRONT"
_VERSION = "v1.0-mini"
_NUM_RAYS = 50
# Probability of changing the stored content instead of the bytes.
_SHARE_WRONG_VALUES = 0.4
_JUNK: tuple[Any, ...] = (
    None, True, "", "a", "\ud800", "a\0b", "x" * 3000, b"bytes", -1, 0, 2**70, 1.5, math.nan,
    math.inf, [], {}, [[]], {"a": {}}, [1, 2, 3], (1, 2), np.zeros(0), np.full((3, 3), np.nan),
    np.array(["a"]), np.array([None]), np.zeros((2, 2, 2)), np.int8(3), {1, 2},
)  # fmt: skip
_JSON_JUNK: tuple[Any, ...] = (
    None,
    True,
    "",
    "a",
    "x" * 3000,
    -1,
    2**70,
    1.5,
    math.nan,
    [],
    {},
    [[]],
    [1, 2],
)


@dataclass(frozen=True)
class _Target:
    """A reader with an intact file for it.

    Attributes:
        file: Path of the file in the folder of the cases.
        data: Its bytes.
        read: Reader of the file in a folder; called with a generator for the settings.
        content: Stored content as a tree of dicts and lists, if it can be changed.
        store: Serialises such content to bytes.
        junk: Values that may be inserted into it.
    """

    file: str
    data: bytes
    read: Callable[[Path, Rng], object]
    content: Any = None
    store: Callable[[Any], bytes] | None = None
    junk: tuple[Any, ...] = _JUNK


def cases(seed: int) -> Iterator[tuple[str, Callable[[], object]]]:
    """Yield an endless stream of names and calls; a call reads a damaged file.

    The files are in a temporary folder that is removed when the generator is closed. Each call must
    be made before the next one is drawn.

    Args:
        seed: Random seed.
    """
    rng = np.random.default_rng(seed)
    targets = _targets(rng)
    names = list(targets)
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        for target in targets.values():
            (root / target.file).parent.mkdir(parents=True, exist_ok=True)
            (root / target.file).write_bytes(target.data)
        number = 0
        while True:
            name = names[int(rng.integers(len(names)))]
            what, data = _spoiled(targets, name, rng)
            draws = np.random.default_rng([seed, number])
            yield f"{name}, {what} (case {number})", _call(root, targets[name], data, draws)
            number += 1


def _call(root: Path, target: _Target, data: bytes, rng: Rng) -> Callable[[], object]:
    def call() -> object:
        path = root / target.file
        path.write_bytes(data)
        try:
            return target.read(root, rng)
        finally:
            path.write_bytes(target.data)  # other cases read the same folder

    return call


def _spoiled(targets: Mapping[str, _Target], name: str, rng: Rng) -> tuple[str, bytes]:
    """Return a description of the damage, and the bytes of the damaged file."""
    target = targets[name]
    if target.store is not None and rng.random() < _SHARE_WRONG_VALUES:
        what, content = with_wrong_value(target.content, rng, target.junk)
        return what, target.store(content)
    if rng.random() < 0.05:
        other = list(targets)[int(rng.integers(len(targets)))]
        return f"the file of {other}", targets[other].data
    return damaged(target.data, rng)


def _targets(rng: Rng) -> dict[str, _Target]:
    """Return readers with intact files made from seeded data."""
    return {
        **_image_targets(rng),
        **_label_targets(rng),
        **_lidar_targets(rng),
        **_prediction_targets(rng),
        **_pickle_targets(rng),
        **_table_targets(),
    }


def _image_targets(rng: Rng) -> dict[str, _Target]:
    pixels = rng.integers(0, 255, (*_IMAGE_HW, 3), np.uint8)

    def read(file: str) -> Callable[[Path, Rng], object]:
        def call(root: Path, rng: Rng) -> object:
            backend = ("auto", "cv2", "pillow")[int(rng.integers(3))]
            reduction = (1, 2, 4, 8)[int(rng.integers(4))]
            raw_hw = _IMAGE_HW if rng.random() < 0.5 else None
            if rng.random() < 0.5:
                rows, columns = (tuple(sorted(rng.integers(0, 60, 2).tolist())) for _ in range(2))
                name = str(root / file)
                data = read_image_file(name)
                return decode_image_part(data, name, rows, columns, backend, reduction, raw_hw)  # type: ignore[arg-type]
            return read_image(str(root / file), backend, reduction, raw_hw)  # type: ignore[arg-type]

        return call

    targets = {}
    for kind, options in (
        ("JPEG", {}),
        ("JPEG", {"progressive": True}),
        ("PNG", {}),
        ("BMP", {}),
        ("WEBP", {}),
        ("TIFF", {}),
    ):
        buffer = io.BytesIO()
        Image.fromarray(pixels).save(buffer, kind, **options)
        name = "progressive JPEG" if options else kind
        targets[name] = _Target(name, buffer.getvalue(), read(name))
    return targets


def _sample(root: Path) -> OccSample:
    return OccSample(
        sample_idx=0,
        sample_token="token",
        scene_name="scene",
        scene_token="token",
        lidar_token="lidar",
        data_root=str(root),
        img_paths=[],
        img_timestamps=np.zeros(0, dtype=np.int64),
        ego2img=np.zeros((0, 4, 4)),
        pc_range=_RANGE,
        voxel_size=_VOXEL,
        class_names=_CLASSES,
    )


def _label_targets(rng: Rng) -> dict[str, _Target]:
    def occ3d(file: str) -> Callable[[Path, Rng], object]:
        folder = file.split("/", 1)[0]
        return lambda root, rng: LoadOcc3DLabels(folder)(_sample(root))

    fine = tuple(2 * size for size in _GRID)
    targets = {}
    for name, shape, keys, save in (
        ("whole", _GRID, 3, np.savez),
        ("compressed", _GRID, 3, np.savez_compressed),
        ("fine", fine, 3, np.savez_compressed),
        ("semantics", _GRID, 1, np.savez),
    ):
        arrays = {
            "semantics": rng.integers(0, _FREE + 1, shape, np.uint8),
            "mask_camera": rng.random(shape) < 0.5,
            "mask_lidar": rng.integers(0, 2, shape, np.uint8),
        }
        file = f"{name}/scene/token/labels.npz"
        data = _saved(save, **{key: arrays[key] for key in list(arrays)[:keys]})
        targets[f"Occ3D labels ({name})"] = _Target(file, data, occ3d(file))
    voxels = np.stack([rng.integers(0, size, 40) for size in _GRID[::-1]], axis=1)
    rows = np.c_[voxels, rng.integers(0, _FREE + 1, 40)]
    targets["OpenOccupancy labels"] = _Target(
        "occupancy/scene_token/occupancy/lidar.npy",
        _saved(np.save, rows),
        lambda root, rng: LoadOccupancyLabels(label_range=_RANGE, label_voxel_size=_VOXEL)(
            _sample(root)
        ),
    )
    return targets


def _saved(save: Callable[..., None], *arrays: Any, **named: Any) -> bytes:
    buffer = io.BytesIO()
    save(buffer, *arrays, **named)
    return buffer.getvalue()


def _lidar_targets(rng: Rng) -> dict[str, _Target]:
    xyz = rng.normal((0, 0, -1), (20, 9, 1), (120, 3))
    points = np.c_[xyz, rng.integers(0, 255, 120), np.arange(120) % 32].astype(np.float32)

    def read(file: str) -> Callable[[Path, Rng], object]:
        return lambda root, rng: read_lidar_points(str(root / file), int(rng.choice(LOAD_DIMS)))

    names = {f"LiDAR of {dim} columns": dim for dim in LOAD_DIMS}
    return {
        name: _Target(name, np.ascontiguousarray(points[:, :dim]).tobytes(), read(name))
        for name, dim in names.items()
    }


def _prediction_targets(rng: Rng) -> dict[str, _Target]:
    coords = np.argwhere(rng.random(_GRID) < 0.3).astype(np.uint16)
    labels = rng.integers(0, _FREE, len(coords), np.uint8)
    sparse = _saved(np.savez_compressed, coords=coords, labels=labels, scores=labels / 9)
    dense = _saved(np.savez_compressed, rng.integers(0, _FREE + 1, _GRID, np.uint8))
    rays = _saved(
        np.savez_compressed,
        label=rng.integers(0, _FREE + 1, _NUM_RAYS, np.uint8),
        depth=rng.random(_NUM_RAYS).astype(np.float32),
    )

    def read(file: str) -> Callable[[Path, Rng], object]:
        return lambda root, rng: load_prediction(root / file, _GRID, _FREE)

    return {
        "sparse prediction": _Target("sparse.npz", sparse, read("sparse.npz")),
        "dense prediction": _Target("dense.npz", dense, read("dense.npz")),
        "cached rays": _Target(
            "rays.npz", rays, lambda root, rng: read_rays(root / "rays.npz", _NUM_RAYS)
        ),
    }


def _info(index: int) -> dict[str, Any]:
    def camera(name: str) -> dict[str, Any]:
        return {
            "data_path": f"samples/{_CAMERA}/{name}.jpg",
            "timestamp": 1000 * index,
            "cam_intrinsic": np.diag([100.0, 100.0, 1.0]),
            "sensor2global_rotation": np.eye(3),
            "sensor2global_translation": np.arange(3.0),
        }

    sweep = {
        "data_path": "sweeps/LIDAR_TOP/a.bin",
        "timestamp": 1000 * index - 50,
        "sensor2lidar_rotation": np.eye(3),
        "sensor2lidar_translation": np.zeros(3),
    }
    return {
        "token": f"token{index}",
        "scene_name": "scene",
        "scene_token": "scene",
        "lidar_token": f"lidar{index}",
        "timestamp": 1000 * index,
        "lidar_path": "samples/LIDAR_TOP/a.bin",
        "lidar2ego_translation": [0.9, 0.0, 1.8],
        "lidar2ego_rotation": [1.0, 0.0, 0.0, 0.0],
        "ego2global_translation": [5.0, 6.0, 0.0],
        "ego2global_rotation": [0.7, 0.0, 0.0, 0.7],
        "cams": {_CAMERA: camera("key")},
        "cam_sweeps": [{_CAMERA: camera("sweep")}],
        "lidar_sweeps": [sweep],
    }


def _read_infos(path: Path) -> object:
    """Read an info file as a data set does."""
    infos = load_infos(path).infos
    frames, lidar = build_frame_table(infos, [_CAMERA]), build_lidar_table(infos)
    for row, info in enumerate(infos):
        quaternion_to_matrix(info["lidar2ego_rotation"])
        lidar.frames(row, "root")
        own = frames.key_frame[row]
        ego2img_from_poses(
            quaternion_to_matrix(info["ego2global_rotation"]),
            np.reshape(info["ego2global_translation"], 3).astype(np.float64),
            frames.sensor2global_rotation[own],
            frames.sensor2global_translation[own],
            frames.cam_intrinsic[own],
        )
    return infos


def _pickle_targets(rng: Rng) -> dict[str, _Target]:
    content = {
        "infos": [_info(i) for i in range(1, 4)],
        "metadata": {"version": _VERSION, "num_samples": 3, "content_bytes": 9},
    }
    targets = {}
    for protocol in (2, 3, 4, 5):
        name = f"info file of protocol {protocol}"

        def store(content: Any, protocol: int = protocol) -> bytes:
            return pickle.dumps(content, protocol=protocol)

        def read(root: Path, rng: Rng, name: str = name) -> object:
            return _read_infos(root / name)

        targets[name] = _Target(name, store(content), read, content, store)
    checkpoint = {
        "meta": {"epoch": 3, "iter": 9},
        "state_dict": {
            "a.weight": torch.from_numpy(rng.random((3, 4))),
            "b.bias": torch.zeros(5, dtype=torch.float16),
        },
        "optimizer": {"state": {0: {"step": torch.zeros(())}}, "param_groups": [{"lr": 0.1}]},
    }
    for name, is_zip in (("checkpoint", True), ("checkpoint of an old torch", False)):

        def save(content: Any, is_zip: bool = is_zip) -> bytes:
            buffer = io.BytesIO()
            torch.save(content, buffer, _use_new_zipfile_serialization=is_zip)
            return buffer.getvalue()

        def load(root: Path, rng: Rng, name: str = name) -> object:
            return read_checkpoint(root / name)

        targets[name] = _Target(name, save(checkpoint), load, checkpoint, save)
    return targets


def _table_targets() -> dict[str, _Target]:
    tables: dict[str, list[dict[str, Any]]] = {
        "scene": [{"token": "scene", "name": "scene-0061"}],
        "sample": [
            {"token": f"sample{i}", "timestamp": 1000 * i, "scene_token": "scene"} for i in (1, 2)
        ],
        "sensor": [{"token": "sensor", "channel": _CAMERA, "modality": "camera"}],
        "calibrated_sensor": [
            {
                "token": "mount",
                "sensor_token": "sensor",
                "translation": [1.0, 0.0, 1.5],
                "rotation": [1.0, 0.0, 0.0, 0.0],
                "camera_intrinsic": [[100.0, 0.0, 30.0], [0.0, 100.0, 16.0], [0.0, 0.0, 1.0]],
            }
        ],
        "sample_data": [
            {
                "token": f"data{i}",
                "sample_token": f"sample{i}",
                "ego_pose_token": f"pose{i}",
                "calibrated_sensor_token": "mount",
                "timestamp": 1000 * i,
                "is_key_frame": True,
                "filename": f"samples/{_CAMERA}/{i}.jpg",
            }
            for i in (1, 2)
        ],
        "ego_pose": [
            {"token": f"pose{i}", "rotation": [1.0, 0.0, 0.0, 0.0], "translation": [i, 0.0, 0.0]}
            for i in (1, 2)
        ],
    }

    def store(content: Any) -> bytes:
        return json.dumps(content).encode()

    return {
        f"table {name}": _Target(
            f"{_VERSION}/{name}.json",
            store(rows),
            lambda root, rng: open_tables(root, _VERSION),
            rows,
            store,
            _JSON_JUNK,
        )
        for name, rows in tables.items()
    }
