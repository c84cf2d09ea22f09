"""Predict occupancy from camera images with exported ONNX files: no torch, no mmengine.

    pip install onnxruntime numpy pillow
    python examples/onnx_stream.py model_image.onnx model_decoder.onnx frame.npz voxels.npz

The files are those of `scripts/export_onnx.py --split`, `frame.npz` that of its `--frame`.
`Stream` is the part to copy: push the images, calibrations and poses of one frame after another.
"""

from __future__ import annotations

import json
import sys
from collections import deque
from collections.abc import Sequence
from typing import Any

import numpy as np
import onnxruntime
from PIL import Image


def prepare(image: Image.Image, hw: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    """Fill the network's input with an image, cropping its top or its sides.

    Returns:
        uint8 `[3, H, W]`, BGR, and the matrix `[4, 4]` from pixels (u*w, v*w, w, 1) of the
        image to those of the result.
    """
    scale = max(hw[0] / image.height, hw[1] / image.width)
    width, height = int(image.width * scale), int(image.height * scale)
    left, top = max(0, width - hw[1]) // 2, height - hw[0]
    resized = image.convert("RGB").resize((width, height), Image.Resampling.BICUBIC)
    pixels = np.asarray(resized.crop((left, top, left + hw[1], top + hw[0])))
    matrix = np.diag([scale, scale, 1.0, 1.0])
    matrix[:2, 2] = -left, -top
    return np.ascontiguousarray(pixels[..., ::-1].transpose(2, 0, 1)), matrix


def voxelise(points: np.ndarray, facts: dict[str, Any]) -> dict[str, np.ndarray]:
    """Average the points of every LiDAR voxel: the inputs of models that fuse LiDAR.

    Args:
        points: float32 `[n, 5]`: x, y, z (metres, grid's frame), intensity, time lag in seconds,
            which is 0 for the points of the current sweep. These come first.
        facts: Metadata of the file (`Stream.facts`).

    Returns:
        `lidar_features`, `lidar_coords` and `lidar_sweep`.
    """
    lidar = facts["lidar"]
    low, size = np.array([lidar["pc_range"][:3], lidar["voxel_size"]], np.float32)
    index = np.floor((points[:, :3] - low) / size)
    inside = ((index >= 0) & (index < lidar["grid_shape"])).all(1)
    x, y, z = index[inside].astype(np.int64).T
    x_num, y_num, _ = lidar["grid_shape"]
    keys, first, voxel, count = np.unique(
        (z * y_num + y) * x_num + x, return_index=True, return_inverse=True, return_counts=True
    )
    order = np.argsort(voxel, kind="stable")
    rank = np.arange(len(order)) - (np.cumsum(count) - count)[voxel[order]]
    counted = order[rank < lidar["max_points"]]  # the first points of a voxel
    total = np.zeros((len(keys), points.shape[1]), np.float32)
    np.add.at(total, voxel[counted], points[inside][counted])
    mean = total / np.minimum(count, lidar["max_points"]).astype(np.float32)[:, None]
    kept = np.sort(np.argsort(first)[: lidar["max_voxels"]])  # the voxels of the first points
    rest, x = np.divmod(keys[kept], x_num)
    return dict(
        lidar_features=mean[kept],
        lidar_coords=np.stack([*np.divmod(rest, y_num), x], 1),
        lidar_sweep=points[points[:, 4] == 0, :3],
    )


class Stream:
    """A model, and the feature maps of past frames; every frame is computed once.

    Push a frame every `facts["frame_interval_s"]` seconds: the last `facts["num_frames"]` pushes
    are the frames of a prediction.

    Args:
        image_file: ONNX file of the image network.
        decoder_file: ONNX file of the rest.
        grid2ego: `[4, 4]` from the frame of the voxel grid to the vehicle's; they are the same
            with Occ3D's labels, with OpenOccupancy's it is the pose of the LiDAR.
    """

    def __init__(
        self, image_file: str, decoder_file: str, grid2ego: np.ndarray | None = None
    ) -> None:
        self.grid2ego = np.eye(4) if grid2ego is None else grid2ego
        providers = ["CPUExecutionProvider"]
        self.image = onnxruntime.InferenceSession(image_file, providers=providers)
        self.decoder = onnxruntime.InferenceSession(decoder_file, providers=providers)
        self.facts: dict[str, Any] = {}
        for key, text in self.decoder.get_modelmeta().custom_metadata_map.items():
            try:
                self.facts[key] = json.loads(text)
            except json.JSONDecodeError:
                self.facts[key] = text
        self.frames: deque = deque(maxlen=self.facts["num_frames"])

    def push(
        self, images: np.ndarray, ego2img: np.ndarray, ego2global: np.ndarray, **lidar: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Predict voxels around the vehicle at a frame.

        Args:
            images: uint8 `[N, 3, H, W]` of `prepare`.
            ego2img: `[N, 4, 4]`: matrix of `prepare` @ intrinsics (4 x 4) @ vehicle to camera.
            ego2global: `[4, 4]`, pose of the vehicle.
            lidar: Of `voxelise`, for models that fuse LiDAR.

        Returns:
            Indices (x, y, z) `[voxels, 3]`, labels `[voxels]` and scores `[voxels]`.
        """
        self.frames.appendleft((self.image.run(None, {"images": images}), ego2img, ego2global))
        past = list(self.frames)
        past += [past[-1]] * (self.frames.maxlen - len(past))  # at the start the oldest repeats
        # a point of the grid -> of the world -> of the vehicle then -> of the image then
        grid2global = ego2global @ self.grid2ego
        occ2img = [then @ np.linalg.inv(pose) @ grid2global for _, then, pose in past]
        return self.decode([maps for maps, _, _ in past], np.concatenate(occ2img), **lidar)

    def decode(
        self, maps: Sequence[Sequence[np.ndarray]], occ2img: np.ndarray, **lidar: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Predict from the maps of all frames, the current one first."""
        levels = [np.concatenate(level) for level in zip(*maps, strict=True)]
        feeds = {f"feats{index}": level for index, level in enumerate(levels)}
        feeds |= {"occ2img": occ2img.astype(np.float32), **lidar}
        coords, labels, scores = self.decoder.run(["coords", "labels", "scores"], feeds)
        return coords, labels, scores


def main(image_file: str, decoder_file: str, frame_file: str, out: str) -> None:
    """Predict the voxels of a file's frames and write them."""
    stream = Stream(image_file, decoder_file)
    frame = dict(np.load(frame_file))
    maps = [stream.image.run(None, {"images": images}) for images in frame.pop("images")]
    coords, labels, scores = stream.decode(maps, frame.pop("occ2img"), **frame)
    np.savez(out, coords=coords, labels=labels, scores=scores)
    names = stream.facts["class_names"]
    numbers, counts = np.unique(labels, return_counts=True)
    for number, count in zip(numbers, counts, strict=True):
        print(f"{count:7d} voxels of class {names[number] if names else number}")


if __name__ == "__main__":
    if len(sys.argv) != 5:
        sys.exit(f"usage: {sys.argv[0]} IMAGE.onnx DECODER.onnx FRAME.npz VOXELS.npz")
    main(*sys.argv[1:])
