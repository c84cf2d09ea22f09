"""A tiny data set in nuScenes' format, made only with numpy, scipy and Pillow.

It shares no code with the package: poses, projections and tables are computed here independently.
White dots at fixed positions of the world are drawn into every image that shows them. The LiDAR
measures the same dots, and they are the occupied voxels of the OpenOccupancy labels.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from scipy.spatial.transform import Rotation

CAMERAS = {  # name: (x, y, z of the mounting, yaw in degrees)
    "CAM_FRONT": (1.7, 0.0, 1.5, 0),
    "CAM_FRONT_RIGHT": (1.5, -0.5, 1.5, -55),
    "CAM_FRONT_LEFT": (1.5, 0.5, 1.5, 55),
    "CAM_BACK": (0.0, 0.0, 1.6, 180),
    "CAM_BACK_LEFT": (1.0, 0.5, 1.6, 110),
    "CAM_BACK_RIGHT": (1.0, -0.5, 1.6, -110),
}
RAW_HW = (90, 160)
INTRINSIC = np.array([[110.0, 0, 81.0], [0, 110.0, 47.0], [0, 0, 1]])
LIDAR = (0.9, 0.0, 1.8, -90)
SCENES = {"scene-0061": 4, "scene-0553": 2, "scene-0103": 3}  # key frames; the last is validation
SWEEPS_BETWEEN = 5
GRID = (200, 200, 16)
FREE = 17
# LiDAR points on the vehicle itself, LiDAR frame.
ROOF = np.array([[0.3, -0.4, -0.2], [-0.9, 0.9, -0.3], [0.0, 0.5, -0.1]])
NOISE_VOXELS = np.array([[5, 6, 7], [100, 200, 20], [511, 511, 39]])  # x, y, z


def camera_rotation(yaw_deg: float) -> np.ndarray:
    """Return the rotation sensor to ego of a camera: z forward, x right, y down."""
    c, s = np.cos(np.radians(yaw_deg)), np.sin(np.radians(yaw_deg))
    return np.array([[s, 0, c], [-c, 0, s], [0, -1, 0]])


def ego_pose(scene_no: int, time_s: float) -> tuple[np.ndarray, np.ndarray]:
    """Return rotation and translation ego to global, with all three angles changing."""
    angles = [0.4 * scene_no + 0.15 * time_s, 0.02 * np.sin(time_s), 0.01 * time_s]
    rotation = Rotation.from_euler("ZYX", angles).as_matrix()
    heading = np.array([np.cos(0.4 * scene_no), np.sin(0.4 * scene_no), 0.02])
    return rotation, np.array([100.0 * scene_no + 50, 300.0, 2.0]) + 6.0 * time_s * heading


def world_dots(scene_no: int) -> np.ndarray:
    """Return the dots [n, 3], global frame: a ring around the middle of the drive."""
    rotation, centre = ego_pose(scene_no, 0.75)
    azimuth = np.radians(np.arange(0, 360, 15))
    ring = np.stack([14 * np.cos(azimuth), 14 * np.sin(azimuth), np.full(len(azimuth), 1.0)], -1)
    return ring @ rotation.T + centre


def project(
    points: np.ndarray, rotation: np.ndarray, translation: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Return pixels [n, 2] and depth [n] of global points in a camera (rotation, translation)."""
    in_camera = (points - translation) @ rotation
    pixels = in_camera @ INTRINSIC.T
    return pixels[:, :2] / pixels[:, 2:], in_camera[:, 2]


@dataclass
class Frame:
    """One sensor record and its true pose (p_global = R p + t)."""

    token: str
    filename: str
    time_us: int
    is_key: bool
    rotation: np.ndarray
    translation: np.ndarray


@dataclass
class MiniSet:
    """Hold the folder of the data set and its ground truth."""

    root: Path
    frames: dict[tuple[str, str], list[Frame]] = field(default_factory=dict)  # (scene, sensor)
    samples: dict[str, list[str]] = field(default_factory=dict)  # scene -> sample tokens
    labels: dict[str, dict[str, np.ndarray]] = field(default_factory=dict)  # sample token

    def truth(self, path: str) -> Frame:
        """Return the frame of an image file."""
        name = Path(path).name
        return next(f for fs in self.frames.values() for f in fs if Path(f.filename).name == name)


class _Writer:
    def __init__(self, root: Path) -> None:
        self.mini = MiniSet(root)
        names = (
            "category attribute visibility instance sensor calibrated_sensor ego_pose log scene "
            "sample sample_data sample_annotation map"
        )
        self.tables: dict[str, list[dict[str, Any]]] = {name: [] for name in names.split()}

    def write(self) -> MiniSet:
        root = self.mini.root
        for sensor in (*CAMERAS, "LIDAR_TOP"):
            modality = "lidar" if sensor == "LIDAR_TOP" else "camera"
            self.tables["sensor"].append(
                {"token": f"sensor-{sensor}", "channel": sensor, "modality": modality}
            )
        self.tables["log"].append(
            {"token": "log", "logfile": "n000", "location": "singapore-onenorth"}
        )
        (root / "maps").mkdir(parents=True)
        Image.new("L", (8, 8)).save(root / "maps" / "map.png")
        self.tables["map"].append(
            {
                "token": "map",
                "log_tokens": ["log"],
                "category": "semantic_prior",
                "filename": "maps/map.png",
            }
        )
        for scene_no, (name, num_keys) in enumerate(SCENES.items()):
            self._scene(scene_no, name, num_keys)
        (root / "v1.0-mini").mkdir()
        for name, rows in self.tables.items():
            (root / "v1.0-mini" / f"{name}.json").write_text(json.dumps(rows))
        return self.mini

    def _scene(self, scene_no: int, name: str, num_keys: int) -> None:
        tokens = [f"{name}-sample{k}" for k in range(num_keys)]
        self.mini.samples[name] = tokens
        self.tables["scene"].append(
            {
                "token": f"token-{name}",
                "name": name,
                "log_token": "log",
                "nbr_samples": num_keys,
                "first_sample_token": tokens[0],
                "last_sample_token": tokens[-1],
                "description": "",
            }
        )
        for k, token in enumerate(tokens):
            self.tables["sample"].append(
                {
                    "token": token,
                    "timestamp": self._time_us(scene_no, k),
                    "prev": tokens[k - 1] if k else "",
                    "next": tokens[k + 1] if k + 1 < num_keys else "",
                    "scene_token": f"token-{name}",
                }
            )
            self._labels(name, token)
        for sensor in (*CAMERAS, "LIDAR_TOP"):
            self._sensor_frames(scene_no, name, sensor, num_keys)

    @staticmethod
    def _time_us(scene_no: int, key_position: float) -> int:
        return 1_500_000_000_000_000 + scene_no * 60_000_000 + round(key_position * 500_000)

    def _sensor_frames(self, scene_no: int, scene: str, sensor: str, num_keys: int) -> None:
        is_camera = sensor in CAMERAS
        x, y, z, yaw = CAMERAS[sensor] if is_camera else LIDAR
        if is_camera:
            mount = camera_rotation(yaw)
        else:
            mount = Rotation.from_euler("Z", yaw, degrees=True).as_matrix()
        offset = np.array([x, y, z])
        self.tables["calibrated_sensor"].append(
            {
                "token": f"calib-{scene}-{sensor}",
                "sensor_token": f"sensor-{sensor}",
                "translation": offset.tolist(),
                "rotation": _wxyz(mount),
                "camera_intrinsic": INTRINSIC.tolist() if is_camera else [],
            }
        )
        between = SWEEPS_BETWEEN if is_camera else 2
        positions = [k / (between + 1) for k in range((num_keys - 1) * (between + 1) + 1)]
        # One camera misses the oldest sweep between the second and the third key frame.
        if (scene, sensor) == ("scene-0061", "CAM_BACK"):
            del positions[between + 2]
        rows, frames = self.tables["sample_data"], []
        for i, position in enumerate(positions):
            # Cameras fire a little before the LiDAR, each at its own time.
            lag = -0.02 if is_camera else 0.0
            is_key = position == int(position)
            rotation, translation = ego_pose(scene_no, 0.5 * position + lag)
            token = f"{scene}-{sensor}-{i}"
            folder = "samples" if is_key else "sweeps"
            filename = f"{folder}/{sensor}/{token}.{'jpg' if is_camera else 'pcd.bin'}"
            time_us = self._time_us(scene_no, position + 2 * lag)
            self.tables["ego_pose"].append(
                {
                    "token": f"pose-{token}",
                    "timestamp": time_us,
                    "rotation": _wxyz(rotation),
                    "translation": translation.tolist(),
                }
            )
            sample = min(int(np.ceil(position)), num_keys - 1)
            rows.append(
                {
                    "token": token,
                    "sample_token": self.mini.samples[scene][sample],
                    "ego_pose_token": f"pose-{token}",
                    "calibrated_sensor_token": f"calib-{scene}-{sensor}",
                    "timestamp": time_us,
                    "is_key_frame": is_key,
                    "fileformat": "jpg" if is_camera else "pcd",
                    "filename": filename,
                    "height": RAW_HW[0],
                    "width": RAW_HW[1],
                    "prev": f"{scene}-{sensor}-{i - 1}" if i else "",
                    "next": f"{scene}-{sensor}-{i + 1}" if i + 1 < len(positions) else "",
                }
            )
            frame = Frame(
                token, filename, time_us, is_key, rotation @ mount, rotation @ offset + translation
            )
            frames.append(frame)
            if is_camera:
                self._image(scene_no, frame)
            else:
                self._lidar(scene_no, f"token-{scene}", frame)
        self.mini.frames[scene, sensor] = frames

    def _image(self, scene_no: int, frame: Frame) -> None:
        image = np.full((*RAW_HW, 3), 40, dtype=np.uint8)
        pixels, depth = project(world_dots(scene_no), frame.rotation, frame.translation)
        for (u, v), w in zip(pixels, depth, strict=True):
            # Coordinates count from the image's corner, as the augmentation matrices assume.
            col, row = int(np.floor(u)), int(np.floor(v))
            if w > 1 and 3 <= col < RAW_HW[1] - 3 and 3 <= row < RAW_HW[0] - 3:
                image[row - 2 : row + 3, col - 2 : col + 3] = 255
        path = self.mini.root / frame.filename
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(path, quality=95)

    def _lidar(self, scene_no: int, scene_token: str, frame: Frame) -> None:
        """Write the dots (intensity: number of the dot) and the roof; labels of key frames."""
        dots = (world_dots(scene_no) - frame.translation) @ frame.rotation
        xyz = np.concatenate([dots, ROOF])
        rows = np.c_[xyz, np.arange(len(xyz)), np.full(len(xyz), 7)].astype(np.float32)
        path = self.mini.root / frame.filename
        path.parent.mkdir(parents=True, exist_ok=True)
        rows.tofile(path)
        if frame.is_key:
            voxel = np.floor((dots - [-51.2, -51.2, -5.0]) / 0.2).astype(np.int64)
            voxel = np.concatenate([voxel, NOISE_VOXELS])
            label = np.r_[1 + np.arange(len(dots)) % 16, np.zeros(len(NOISE_VOXELS), np.int64)]
            folder = self.mini.root / "occupancy" / f"scene_{scene_token}" / "occupancy"
            folder.mkdir(parents=True, exist_ok=True)
            np.save(folder / f"{frame.token}.npy", np.c_[voxel[:, ::-1], label])
            folder = self.mini.root / "surroundocc"
            folder.mkdir(exist_ok=True)
            coarse = np.floor((dots - [-50, -50, -5]) / 0.5).astype(np.int64)
            rows = np.c_[coarse, np.arange(len(dots)) % 16 + 1]
            np.save(folder / f"{Path(frame.filename).name}.npy", rows)

    def _labels(self, scene: str, token: str) -> None:
        rng = np.random.default_rng(len(self.mini.labels))
        semantics = np.full(GRID, FREE, dtype=np.uint8)
        semantics[:, :, 2] = 11
        semantics[rng.integers(0, 200, 300), rng.integers(0, 200, 300), 4] = rng.integers(
            0, 17, 300
        )
        masks = {name: rng.random(GRID) < 0.3 for name in ("mask_camera", "mask_lidar")}
        self.mini.labels[token] = {"semantics": semantics, **masks}
        folder = self.mini.root / "gts" / scene / token
        folder.mkdir(parents=True)
        stored = {name: mask.astype(np.uint8) for name, mask in masks.items()}
        np.savez_compressed(folder / "labels.npz", semantics=semantics, **stored)


def _wxyz(rotation: np.ndarray) -> list[float]:
    x, y, z, w = Rotation.from_matrix(rotation).as_quat()
    return [w, x, y, z]


@pytest.fixture(scope="session")
def mini(tmp_path_factory: pytest.TempPathFactory) -> MiniSet:
    """Return the data set with info files of the real generator. Read only."""
    from scripts.sweep_infos.generator import open_tables, write_split
    from scripts.sweep_infos.splits import SPLITS

    written = _Writer(tmp_path_factory.mktemp("mini") / "nuscenes").write()
    tables = open_tables(written.root, "v1.0-mini")
    for part, split in SPLITS["v1.0-mini"].items():
        path = written.root / f"nuscenes_infos_{part}_mini_sweep.pkl"
        write_split(tables, split, path, progress=False)
    return written


@pytest.fixture(scope="session")
def mini_world() -> dict[str, Any]:
    """Return functions and constants of this file for comparison."""
    return {
        "project": project,
        "world_dots": world_dots,
        "ego_pose": ego_pose,
        "scene_names": list(SCENES),
        "intrinsic": INTRINSIC,
        "raw_hw": RAW_HW,
        "lidar_offset": np.array(LIDAR[:3]),
        "roof": ROOF,
        "noise_voxels": NOISE_VOXELS,
    }
