"""Pure functions of the image and grid geometry (no files, no randomness, no registry).

Frames: *global* (map), *ego* (vehicle, at the time of the key frame's LiDAR sweep), *sensor*
(camera), *img* (pixels of the image that enters the network), *occ* (the voxel grid's frame).
Legend: F images of a sample (frames x cameras), X Y Z voxels along the axes.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

# Sizes are computed as raw * ratio. A product such as 400 * 0.29 = 115.99999999999999 must not be
# truncated to the next lower pixel.
_SIZE_EPS = 1e-6

FloatArray = npt.NDArray[np.floating[Any]]


@dataclass(frozen=True)
class ImageAugParams:
    """Augmentation of every image of a sample: resize, crop, flip, rotate, in this order.

    Attributes:
        resize: Ratio of resized to raw size; the matrix uses this ratio, not the truncated size.
        resize_dims: Resized (width, height) in pixels.
        crop: (left, top, right, bottom) in pixels of the resized image; parts outside are black.
        flip: Whether the crop is mirrored left-right.
        rotate_deg: Counter-clockwise rotation about the centre of the crop, in degrees.
    """

    resize: float
    resize_dims: tuple[int, int]
    crop: tuple[int, int, int, int]
    flip: bool = False
    rotate_deg: float = 0.0

    @property
    def size_hw(self) -> tuple[int, int]:
        """Height and width of the augmented image."""
        return self.crop[3] - self.crop[1], self.crop[2] - self.crop[0]

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> ImageAugParams:
        """Build from a mapping with keys resize, resize_dims, crop, flip, rotate."""
        width, height = values["resize_dims"]
        left, top, right, bottom = values["crop"]
        return cls(
            resize=float(values["resize"]),
            resize_dims=(int(width), int(height)),
            crop=(int(left), int(top), int(right), int(bottom)),
            flip=bool(values["flip"]),
            rotate_deg=float(values["rotate"]),
        )


def draw_image_aug(
    rng: np.random.Generator,
    raw_hw: tuple[int, int],
    final_hw: tuple[int, int],
    resize_range: tuple[float, float],
    flip_prob: float = 0.5,
    rotate_range_deg: tuple[float, float] = (0.0, 0.0),
) -> ImageAugParams:
    """Draw a training augmentation (bottom-aligned crop, as in OPUS and SparseBEV).

    Args:
        rng: Source of randomness; the number of drawn values does not depend on the ranges.
        raw_hw: Height and width of the image on disk.
        final_hw: Height and width of the network input.
        resize_range: Uniform range of the ratio resized / raw.
        flip_prob: Probability of a left-right flip.
        rotate_range_deg: Uniform range of the rotation, degrees counter-clockwise.
    """
    resize = float(rng.uniform(*resize_range))
    left_fraction = float(rng.uniform())
    flip = bool(rng.uniform() < flip_prob)
    rotate_deg = float(rng.uniform(*rotate_range_deg))
    new_w, _ = _resized_dims(raw_hw, resize)
    # The fraction refers to the number of positions, so the last one is as likely as the others.
    left = min(int(left_fraction * (max(0, new_w - final_hw[1]) + 1)), max(0, new_w - final_hw[1]))
    return replace(bottom_crop(raw_hw, final_hw, resize, left), flip=flip, rotate_deg=rotate_deg)


def bottom_crop(
    raw_hw: tuple[int, int], final_hw: tuple[int, int], resize: float, left: int = 0
) -> ImageAugParams:
    """Return the augmentation that resizes and crops the bottom rows from column `left`."""
    new_w, new_h = _resized_dims(raw_hw, resize)
    top = new_h - final_hw[0]
    return ImageAugParams(
        resize, (new_w, new_h), (left, top, left + final_hw[1], top + final_hw[0])
    )


def test_image_aug(raw_hw: tuple[int, int], final_hw: tuple[int, int]) -> ImageAugParams:
    """Return the augmentation of evaluation: fill the input, crop the top and the sides."""
    resize = max(final_hw[0] / raw_hw[0], final_hw[1] / raw_hw[1])
    left = max(0, _resized_dims(raw_hw, resize)[0] - final_hw[1]) // 2
    return bottom_crop(raw_hw, final_hw, resize, left)


def aug_for_size(
    params: ImageAugParams, raw_hw: tuple[int, int], other_hw: tuple[int, int]
) -> ImageAugParams:
    """Return an augmentation for images of another size.

    These images are resized to cover the resized size of the others, then cropped in the same way:
    centred in width, and to the lower part in height.

    Args:
        params: Augmentation of images of `raw_hw`.
        raw_hw: Height and width.
        other_hw: Height and width of the other images.
    """
    if other_hw == raw_hw:
        return params
    resize = params.resize * max(raw_hw[0] / other_hw[0], raw_hw[1] / other_hw[1])
    new_w, new_h = _resized_dims(other_hw, resize)
    left = params.crop[0] + (new_w - params.resize_dims[0]) // 2
    top = params.crop[1] + new_h - params.resize_dims[1]
    height, width = params.size_hw
    crop = (left, top, left + width, top + height)
    return replace(params, resize=resize, resize_dims=(new_w, new_h), crop=crop)


def _resized_dims(raw_hw: tuple[int, int], resize: float) -> tuple[int, int]:
    return int(raw_hw[1] * resize + _SIZE_EPS), int(raw_hw[0] * resize + _SIZE_EPS)


def image_aug_matrix(params: ImageAugParams) -> npt.NDArray[np.float32]:
    """Return the [4, 4] matrix that maps homogeneous raw pixels to augmented pixels.

    It multiplies `ego2img` from the left (rows: u*w, v*w, w, 1), so the shift is in column 2,
    which is multiplied by the depth w. Pixel indices are scaled without the half-pixel shift and in
    single precision, as in the training of all published OPUS/SparseBEV weights.
    """
    f32 = np.float32
    crop_w, crop_h = params.crop[2] - params.crop[0], params.crop[3] - params.crop[1]
    linear = np.eye(2, dtype=f32) * f32(params.resize)
    shift = -np.array(params.crop[:2], dtype=f32)
    if params.flip:
        mirror = np.diag([-1.0, 1.0]).astype(f32)
        linear = mirror @ linear
        shift = mirror @ shift + np.array([crop_w, 0.0], dtype=f32)
    angle = params.rotate_deg / 180.0 * math.pi
    cos, sin = math.cos(angle), math.sin(angle)
    turn = np.array([[cos, sin], [-sin, cos]], dtype=f32)
    centre = np.array([crop_w, crop_h], dtype=f32) / f32(2)
    matrix = np.eye(4, dtype=f32)
    matrix[:2, :2] = turn @ linear
    matrix[:2, 2] = turn @ shift + (turn @ -centre + centre)
    return matrix


def apply_image_aug(image: npt.NDArray[np.uint8], params: ImageAugParams) -> npt.NDArray[np.uint8]:
    """Augment one image as published: Pillow, bicubic resize, nearest-pixel rotation.

    Args:
        image: uint8 [H, W, 3], any channel order (kept).
        params: The augmentation.

    Returns:
        uint8 [h, w, 3] with (h, w) = `params.size_hw`.
    """
    pil = Image.fromarray(image)
    pil = pil.resize(params.resize_dims, Image.Resampling.BICUBIC).crop(params.crop)
    if params.flip:
        pil = pil.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    if params.rotate_deg:
        pil = pil.rotate(params.rotate_deg)
    return np.asarray(pil)


def quaternion_to_matrix(quaternion_wxyz: Sequence[float] | FloatArray) -> npt.NDArray[np.float64]:
    """Return the rotation matrix [3, 3] of a quaternion (w, x, y, z), which is normalised first.

    Raises:
        ValueError: If it is not four finite numbers, or zero.
    """
    q = np.asarray(quaternion_wxyz, dtype=np.float64)
    norm = float(np.linalg.norm(q)) if q.shape == (4,) else math.nan
    if not (math.isfinite(norm) and norm > 0):
        raise ValueError(f"expected a quaternion (w, x, y, z) of four finite numbers, got {q}")
    w, x, y, z = (q / norm).tolist()
    return np.array(
        [
            [1 - 2 * (y * y + z * z), 2 * (x * y - z * w), 2 * (x * z + y * w)],
            [2 * (x * y + z * w), 1 - 2 * (x * x + z * z), 2 * (y * z - x * w)],
            [2 * (x * z - y * w), 2 * (y * z + x * w), 1 - 2 * (x * x + y * y)],
        ]
    )


def ego2img_from_poses(
    ego2global_rotation: FloatArray,
    ego2global_translation: FloatArray,
    sensor2global_rotation: FloatArray,
    sensor2global_translation: FloatArray,
    cam_intrinsic: FloatArray,
) -> npt.NDArray[np.float64]:
    """Return the matrices that map ego points to (u*w, v*w, w, 1) of each camera image.

    Args:
        ego2global_rotation: [3, 3] of the current key frame (p_global = R @ p_ego + t).
        ego2global_translation: [3], metres.
        sensor2global_rotation: [..., 3, 3] of each image's camera at its own time
            (p_global = R @ p_sensor + t; info files store the transpose of this).
        sensor2global_translation: [..., 3], metres.
        cam_intrinsic: [..., 3, 3], pixels.

    Returns:
        float64 [..., 4, 4].
    """
    rotation = np.linalg.inv(sensor2global_rotation) @ ego2global_rotation
    # Row vector times R is R^T times column vector: the inverse rotation, batched.
    offset = (ego2global_translation - sensor2global_translation)[..., None, :]
    translation = (offset @ sensor2global_rotation)[..., 0, :]
    ego2img = np.zeros((*rotation.shape[:-2], 4, 4))
    ego2img[..., :3, :3] = cam_intrinsic @ rotation
    ego2img[..., :3, 3] = (cam_intrinsic @ translation[..., None])[..., 0]
    ego2img[..., 3, 3] = 1.0
    return ego2img


def flip_bev(
    grids: Sequence[npt.NDArray[Any]],
    flip_x: bool,
    flip_y: bool,
    pc_range: Sequence[float] | None = None,
) -> tuple[list[npt.NDArray[Any]], npt.NDArray[np.float64]]:
    """Reverse the x and/or y axis of voxel grids; return the grids and the matching `ego2occ`.

    Args:
        grids: Arrays [X, Y, ...] (labels, masks); all are flipped in the same way.
        flip_x: Whether to reverse axis 0.
        flip_y: Whether to reverse axis 1.
        pc_range: (x0, y0, z0, x1, y1, z1) metres; a range that is not centred on the origin is
            mirrored about its own centre. None means centred.

    Returns:
        The grids (contiguous copies where flipped) and ego2occ, float64 [4, 4].
    """
    ego2occ = np.eye(4)
    step = [slice(None), slice(None)]
    for axis, flip in enumerate((flip_x, flip_y)):
        if flip:
            step[axis] = slice(None, None, -1)
            ego2occ[axis, axis] = -1.0
            ego2occ[axis, 3] = 0.0 if pc_range is None else pc_range[axis] + pc_range[axis + 3]
    if not (flip_x or flip_y):
        return list(grids), ego2occ
    return [np.ascontiguousarray(grid[tuple(step)]) for grid in grids], ego2occ


def lidar_ray_origins(
    ego2global_rotation: FloatArray,
    ego2global_translation: FloatArray,
    lidar2ego_translation: FloatArray,
    current: int,
    max_xy_m: float = 39.0,
    max_origins: int = 8,
) -> npt.NDArray[np.float64]:
    """Return the origins of RayIoU's rays: LiDAR positions of a scene's key frames (SparseOcc).

    Args:
        ego2global_rotation: [n, 3, 3] of the scene's n key frames, in time order.
        ego2global_translation: [n, 3] metres.
        lidar2ego_translation: [n, 3] metres, mounting position of the LiDAR.
        current: Index of the frame in whose ego frame the origins are returned.
        max_xy_m: Origins with |x| or |y| of at least this value are dropped.
        max_origins: Maximum number; more origins are thinned evenly along the drive.

    Returns:
        float64 [O, 3], O <= max_origins (at least the current position, if it is in range).
    """
    position = np.einsum("nij,nj->ni", ego2global_rotation, lidar2ego_translation)
    position = position + ego2global_translation
    # Row vectors times R are R^T times column vectors: into the current ego frame.
    origins = (position - ego2global_translation[current]) @ ego2global_rotation[current]
    origins = origins[(np.abs(origins[:, :2]) < max_xy_m).all(axis=1)]
    if len(origins) > max_origins:
        keep = np.round(np.linspace(0, len(origins) - 1, max_origins)).astype(np.int64)
        origins = origins[keep]
    return origins
