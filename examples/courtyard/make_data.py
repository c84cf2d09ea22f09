"""Make the courtyard: boxes in a yard and four cameras on a cart.

    python examples/courtyard/make_data.py --out data/courtyard

The end of the file shows the files of a custom data set: images, labels, and an info file of poses
and calibrations.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from examples.courtyard.dataset import CAMERAS, CourtyardDataset
from loaders.info_io import save_infos
from scripts.runtime.command_line import CommandParser, number_from, run_command

IMAGE_HW = (64, 96)
INTRINSIC = np.array([[50.0, 0, 48], [0, 50, 32], [0, 0, 1]])
CAMERA_HEIGHT_M = 1.2
FRAME_US = 500_000
# Sky, then the classes in label order.
COLOURS = np.array([[150, 190, 230], [90, 90, 80], [180, 120, 90], [200, 170, 60], [60, 80, 200]])
GROUND, WALL, CRATE, PERSON = range(4)
FREE = 4

FloatArray = npt.NDArray[np.float64]


@dataclass
class Yard:
    """Boxes standing on the ground z = 0, in the global frame.

    Attributes:
        low: [n, 3] metres.
        high: [n, 3] metres.
        label: [n].
    """

    low: FloatArray
    high: FloatArray
    label: npt.NDArray[np.int64]


def make_yard(rng: np.random.Generator) -> Yard:
    """Return two long walls with crates and people between them."""
    boxes = [([-30.0, 7, 0], [40.0, 8, 2.2], WALL), ([-30.0, -8, 0], [40.0, -7, 2.2], WALL)]
    for label, size in ((CRATE, (1.2, 1.2, 1.0)), (PERSON, (0.6, 0.6, 1.8))):
        for _ in range(9):
            x, y = rng.uniform(-14, 22), rng.choice([-1, 1]) * rng.uniform(2, 6)
            low = np.array([x, y, 0.0])
            boxes.append((list(low), list(low + size), label))
    low_, high_, label_ = zip(*boxes, strict=True)
    return Yard(np.array(low_), np.array(high_), np.array(label_))


def cart_pose(frame: int) -> tuple[FloatArray, FloatArray]:
    """Return the rotation [3, 3] and translation [3] of the cart, ego to global; ego x points
    forward.
    """
    yaw = 0.1 * np.sin(frame)
    rotation = np.array([[np.cos(yaw), -np.sin(yaw), 0], [np.sin(yaw), np.cos(yaw), 0], [0, 0, 1]])
    return rotation, np.array([1.0 * frame, 0.2 * np.sin(0.7 * frame), 0.0])


def camera_rotation(number: int) -> FloatArray:
    """Return the rotation camera to ego: z forward, x right, y down; each camera a quarter turn
    on.
    """
    c, s = np.cos(np.pi / 2 * number), np.sin(np.pi / 2 * number)
    return np.array([[s, 0, c], [-c, 0, s], [0, -1, 0]])


def first_hits(yard: Yard, origin: FloatArray, rays: FloatArray) -> npt.NDArray[np.int64]:
    """Return the class of the first hit of each ray [n, 3]; -1 for the sky."""
    with np.errstate(divide="ignore", invalid="ignore"):
        distance = np.where(rays[:, 2] < 0, -origin[2] / rays[:, 2], np.inf)
        near, far = (
            (corner - origin) / rays[:, None, :] for corner in (yard.low[None], yard.high[None])
        )
    enter = np.minimum(near, far).max(axis=2)
    leave = np.maximum(near, far).min(axis=2)
    enter[(enter > leave) | (enter <= 0)] = np.inf
    label = np.where(np.isfinite(distance), GROUND, -1)
    box = enter.argmin(axis=1)
    nearest = enter[np.arange(len(rays)), box]
    return np.where(nearest < distance, yard.label[box], label)


def render(yard: Yard, position: FloatArray, rotation: FloatArray) -> npt.NDArray[np.uint8]:
    """Return the image [H, W, 3] of a camera at `position` with `rotation` to the global frame."""
    v, u = np.indices(IMAGE_HW)
    pixels = np.stack([u + 0.5, v + 0.5, np.ones(IMAGE_HW)], -1).reshape(-1, 3)
    rays = pixels @ np.linalg.inv(INTRINSIC).T @ rotation.T
    colours = COLOURS[1 + first_hits(yard, position, rays)]
    return colours.reshape(*IMAGE_HW, 3).astype(np.uint8)


def make_labels(yard: Yard, rotation: FloatArray, translation: FloatArray) -> npt.NDArray[np.uint8]:
    """Return the labels [X, Y, Z] of the voxels around the cart, by their centres."""
    low, high = (np.array(CourtyardDataset.default_pc_range[a:b]) for a, b in ((0, 3), (3, 6)))
    voxel = np.array(CourtyardDataset.default_voxel_size)
    shape = np.round((high - low) / voxel).astype(int)
    centres = (np.moveaxis(np.indices(shape), 0, -1) + 0.5) * voxel + low
    points = centres @ rotation.T + translation
    labels = np.where(points[..., 2] < 0, GROUND, FREE).astype(np.uint8)
    for box_low, box_high, label in zip(yard.low, yard.high, yard.label, strict=True):
        labels[((points >= box_low) & (points < box_high)).all(-1)] = label
    return labels


def write_frame(root: Path, scene: str, frame: int, yard: Yard) -> dict[str, Any]:
    """Write the files of a frame; return its entry in the info file."""
    token = f"{scene}-{frame:03d}"
    rotation, translation = cart_pose(frame)
    np.save(root / "labels" / f"{token}.npy", make_labels(yard, rotation, translation))
    cams = {}
    for number, name in enumerate(CAMERAS):
        to_global = rotation @ camera_rotation(number)
        position = rotation @ np.array([0, 0, CAMERA_HEIGHT_M]) + translation
        path = f"images/{name}/{token}.png"
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(render(yard, position, to_global)).save(root / path)
        cams[name] = {
            "data_path": path,  # relative to the data root
            "timestamp": frame * FRAME_US,
            "cam_intrinsic": INTRINSIC,
            "sensor2global_rotation": to_global.T,  # transposed: the format multiplies row vectors
            "sensor2global_translation": position,
        }
    half = 0.5 * np.arctan2(rotation[1, 0], rotation[0, 0])
    return {
        "token": token,
        "scene_name": scene,
        "scene_token": scene,
        "timestamp": frame * FRAME_US,
        "cams": cams,
        "cam_sweeps": [],  # no images between key frames: the history has only key frames
        "ego2global_rotation": [np.cos(half), 0.0, 0.0, np.sin(half)],  # w, x, y, z
        "ego2global_translation": translation,
        # There is no LiDAR; its pose is the origin of RayIoU's rays.
        "lidar2ego_rotation": [1.0, 0.0, 0.0, 0.0],
        "lidar2ego_translation": [0.0, 0.0, CAMERA_HEIGHT_M],
        "lidar_token": "",
        "lidar_path": "",
        "lidar_sweeps": [],
    }


def make_data(root: Path, scenes: int, frames: int, seed: int = 0) -> None:
    """Write training scenes and a validation scene."""
    (root / "labels").mkdir(parents=True, exist_ok=True)
    for split, count in (("train", scenes), ("val", 1)):
        infos = []
        for number in range(count):
            yard = make_yard(np.random.default_rng([seed, len(split), number]))
            scene = f"{split}{number}"
            infos += [write_frame(root, scene, frame, yard) for frame in range(frames)]
        save_infos(root / f"infos_{split}.pkl", infos, {"version": "courtyard"})


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code."""
    parser = CommandParser(__doc__)
    parser.add_argument("--out", type=Path, default=Path("data/courtyard"))
    parser.add_argument("--scenes", type=number_from(1), default=6, help="training scenes")
    parser.add_argument("--frames", type=number_from(1), default=8, help="frames per scene")

    def run(args: argparse.Namespace) -> None:
        make_data(args.out, args.scenes, args.frames)
        print(f"{args.out}: {args.scenes + 1} scenes of {args.frames} frames")

    return run_command(parser, run, arguments)


if __name__ == "__main__":
    sys.exit(main())
