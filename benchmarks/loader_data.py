"""Write data sets of nuScenes' sizes for bench_loader: one scene of links to a few files."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageFilter

from loaders.info_io import CAMERAS, save_infos

RAW_HW = (900, 1600)
KEY_FRAMES, SWEEPS, LIDAR_SWEEPS = 24, 5, 9
_LIDAR_POINTS = 34_720
NUSCENES_QUALITY = 80  # by the quantisation tables of its files


def real_files(root: Path, sensor: str) -> list[Path]:
    """Return the key frames of a nuScenes folder, of sensors whose name starts with `sensor`."""
    return sorted(path for path in root.glob(f"samples/{sensor}*/*") if path.is_file())


def write_image(path: Path, seed: int) -> None:
    """Write a JPEG with about the bytes of a street: large shapes, edges, a little noise."""
    rng = np.random.default_rng(seed)
    h, w = RAW_HW
    image = Image.fromarray(rng.integers(0, 255, (h // 60, w // 60, 3), np.uint8))
    image = image.resize((w, h), Image.Resampling.BICUBIC)
    boxes = np.asarray(image).astype(np.int16)
    for _ in range(120):
        y, x = rng.integers(0, h), rng.integers(0, w)
        size = rng.integers(5, 90, 2)
        boxes[y : y + size[0], x : x + size[1]] = rng.integers(0, 255, 3)
    boxes += rng.integers(-4, 5, boxes.shape, np.int16)
    image = Image.fromarray(np.clip(boxes, 0, 255).astype(np.uint8))
    image.filter(ImageFilter.GaussianBlur(0.6)).save(path, quality=NUSCENES_QUALITY)


def write_points(path: Path) -> None:
    """Write a LiDAR file of nuScenes' size with random points."""
    rng = np.random.default_rng(0)
    points = rng.normal(0, 20, (_LIDAR_POINTS, 5)).astype(np.float32)
    points[:, 3] = rng.integers(0, 256, _LIDAR_POINTS)
    points[:, 4] = np.arange(_LIDAR_POINTS) % 32
    path.write_bytes(points.tobytes())


def write_labels(path: Path) -> None:
    """Write an Occ3D file of boxes on the ground, with masks of smooth outline."""
    rng = np.random.default_rng(0)
    semantics = np.full((200, 200, 16), 17, np.uint8)
    semantics[:, :, :2] = 11
    for _ in range(150):
        x, y = rng.integers(0, 190, 2)
        semantics[x : x + 10, y : y + 8, 2 : rng.integers(3, 16)] = rng.integers(0, 17)
    x, y, z = np.ogrid[:200, :200, :16]
    masks = [np.sin(x / a) + np.cos(y / b) + np.sin(z / 3) > 0.8 for a, b in ((9, 7), (14, 11))]
    np.savez_compressed(path, semantics=semantics, mask_camera=masks[0], mask_lidar=masks[1])


def write_data_set(root: Path, real: Path | None = None) -> None:
    """Write a scene of key frames, sweeps, LiDAR files and Occ3D labels.

    Args:
        root: Empty folder.
        real: nuScenes folder to take key frames and labels from; None draws them.
    """
    stock, clouds = [root / f"stock{i}.jpg" for i in range(12)], [root / "cloud.bin"]
    if real is None:
        for i, path in enumerate(stock):
            write_image(path, i)
        write_points(clouds[0])
    else:
        stock = real_files(real, "CAM")
        clouds = real_files(real, "LIDAR") or clouds
        if not clouds[0].exists():
            write_points(clouds[0])
    rng = np.random.default_rng(0)
    labels = sorted(real.glob("gts/*/*/labels.npz")) if real is not None else []
    if not labels:
        labels = [root / "labels.npz"]
        write_labels(labels[0])
    numbers = iter(range(10**6))

    def link(sensor: str, files: list[Path], suffix: str) -> str:
        path = f"samples/{sensor}/{next(numbers)}{suffix}"
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        os.symlink(files[rng.integers(len(files))].resolve(), root / path)
        return path

    def frame(time_us: int) -> dict[str, Any]:
        return {
            name: {
                "data_path": link(name, stock, ".jpg"),
                "timestamp": time_us,
                "cam_intrinsic": np.array([[1266.0, 0, 810], [0, 1266, 490], [0, 0, 1]]),
                "sensor2global_rotation": np.eye(3),
                "sensor2global_translation": np.zeros(3),
            }
            for name in CAMERAS
        }

    def lidar_sweep(time_us: int) -> dict[str, Any]:
        return {
            "data_path": link("LIDAR_TOP", clouds, ".pcd.bin"),
            "timestamp": time_us,
            "sensor2lidar_rotation": np.eye(3),
            "sensor2lidar_translation": np.array([0.5, 0.0, 0.0]),
        }

    infos = []
    for k in range(KEY_FRAMES):
        now, token = 10**9 + 500_000 * k, f"sample{k}"
        still = {"translation": [0.0] * 3, "rotation": [1.0, 0, 0, 0]}
        infos.append({
            "token": token,
            "timestamp": now,
            "scene_name": "scene",
            "scene_token": "scene",
            "lidar_token": f"lidar{k}",
            "lidar_path": link("LIDAR_TOP", clouds, ".pcd.bin"),
            "lidar_sweeps": [lidar_sweep(now - 50_000 * (i + 1)) for i in range(LIDAR_SWEEPS)],
            "cams": frame(now),
            "cam_sweeps": [frame(now - 83_333 * (i + 1)) for i in range(SWEEPS if k else 0)],
            **{f"{a}_{b}": still[b] for a in ("lidar2ego", "ego2global") for b in still},
        })  # fmt: skip
        folder = root / "gts" / "scene" / token
        folder.mkdir(parents=True)
        os.symlink(labels[k % len(labels)].resolve(), folder / "labels.npz")
    save_infos(root / "infos.pkl", infos, {"version": "v1.0-trainval"})
