"""Frames of a camera rig, with or without LiDAR: the input of predictions.

Frames of reference: *sensor* (camera: z forward, x right, y down; or LiDAR), *ego* (vehicle: x
forward, y left, z up), *global* (any frame that does not move). `a2b` is the matrix [4, 4] with
p_b = a2b @ p_a. Lengths are metres, times seconds.
"""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from loaders.transforms.geometry import quaternion_to_matrix
from scripts.prediction.errors import FrameError

ChannelOrder = Literal["bgr", "rgb"]
ImageSource = str | os.PathLike[str] | bytes | npt.NDArray[np.uint8]
PointSource = str | os.PathLike[str] | npt.NDArray[np.floating[Any]]
Matrix = npt.NDArray[np.float64]

# Rotations are written with a few decimals. A larger deviation is an error.
_ROTATION_TOLERANCE = 1e-3


@dataclass(frozen=True)
class CameraFrame:
    """One image with its calibration.

    Attributes:
        image: A file, the content of a file (JPEG, PNG, BMP, PPM, WebP, TIFF), or pixels uint8
            [H, W, 3] with their `channel_order`.
        intrinsics: [3, 3] pinhole matrix in pixels of this image.
        sensor2ego: [4, 4] mounting of the camera.
        channel_order: Order of the channels of pixels: 'bgr' as in OpenCV, or 'rgb' as in Pillow.
        time_s: Time at which the image was taken; None: the time of the frame.
        ego2global: [4, 4] pose of the vehicle when the image was taken; None: that of the frame.
        sensor2global: [4, 4] pose of the camera when the image was taken, instead of
            `sensor2ego` and `ego2global`.
    """

    image: ImageSource
    intrinsics: npt.ArrayLike
    sensor2ego: npt.ArrayLike | None = None
    channel_order: ChannelOrder | None = None
    time_s: float | None = None
    ego2global: npt.ArrayLike | None = None
    sensor2global: npt.ArrayLike | None = None


@dataclass(frozen=True)
class LidarSweep:
    """Points of a LiDAR from before a frame.

    Attributes:
        points: [n, 3 to 5] x, y, z in metres of the LiDAR's own frame at its time, intensity, ring;
            or a file of float32 rows, as in nuScenes.
        time_s: Time of the measurement.
        sensor2lidar: [4, 4] to the LiDAR's frame at the time of the frame that they belong to.
    """

    points: PointSource
    time_s: float
    sensor2lidar: npt.ArrayLike


@dataclass(frozen=True)
class Frame:
    """Images and points of a rig at one time.

    Attributes:
        cameras: Images by the names of the cameras. A camera without an image is left out or
            None.
        time_s: Seconds from any start; not used for a frame without history.
        ego2global: [4, 4] pose of the vehicle; None for a vehicle that does not move.
        lidar2ego: [4, 4] mounting of the LiDAR. Needed with points, and by models whose grid is in
            the LiDAR's frame (OpenOccupancy).
        lidar: Points as in `LidarSweep`, for models that fuse LiDAR.
        lidar_sweeps: Older points, newest first. None: those of the frames before in the stream.
        name: Name of the frame in errors and files.
    """

    cameras: Mapping[str, CameraFrame | None]
    time_s: float = 0.0
    ego2global: npt.ArrayLike | None = None
    lidar2ego: npt.ArrayLike | None = None
    lidar: PointSource | None = None
    lidar_sweeps: Sequence[LidarSweep] | None = None
    name: str = ""

    @property
    def label(self) -> str:
        """Return the name of the frame in errors."""
        return f"frame {self.name}" if self.name else f"frame at {self.time_s} s"


def pose(
    translation: Sequence[float] | npt.ArrayLike, rotation: Sequence[float] | npt.ArrayLike
) -> Matrix:
    """Return a pose as a matrix [4, 4].

    Args:
        translation: [3] metres.
        rotation: Quaternion (w, x, y, z), or matrix [3, 3] with p = R @ p_own + t.

    Raises:
        FrameError: If they are not a translation and a rotation.
    """
    matrix = np.eye(4)
    try:
        values = np.asarray(rotation, dtype=np.float64)
        matrix[:3, :3] = values if values.shape == (3, 3) else quaternion_to_matrix(values)
        matrix[:3, 3] = np.asarray(translation, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise FrameError(
            f"translation {translation!r} and rotation {rotation!r} are not a pose: give three "
            "metres, and a quaternion (w, x, y, z) or a matrix [3, 3]"
        ) from error
    return rigid(matrix, "the pose")


def rigid(values: npt.ArrayLike, what: str) -> Matrix:
    """Check a matrix [4, 4] of a rotation and a translation.

    Args:
        values: The matrix.
        what: Its name in errors.

    Raises:
        FrameError: If it is something else.
    """
    matrix = _numbers(values, (4, 4), what)
    rotation = matrix[:3, :3]
    is_rotation = np.allclose(rotation @ rotation.T, np.eye(3), rtol=0, atol=_ROTATION_TOLERANCE)
    if not is_rotation or np.linalg.det(rotation) < 0:
        raise FrameError(
            f"{what} has no rotation (its columns are not three orthonormal, right-handed axes): "
            "expected [4, 4] of a rotation and a translation in metres"
        )
    if not np.array_equal(matrix[3], (0, 0, 0, 1)):
        raise FrameError(
            f"the last row of {what} is {matrix[3].tolist()}, expected [0, 0, 0, 1]: translations "
            "belong in the last column"
        )
    return matrix


def intrinsic_matrix(values: npt.ArrayLike, what: str) -> Matrix:
    """Check a pinhole matrix [3, 3].

    Raises:
        FrameError: If it is something else.
    """
    matrix = _numbers(values, (3, 3), what)
    if min(matrix[0, 0], matrix[1, 1]) <= 0 or not np.array_equal(matrix[2], (0, 0, 1)):
        raise FrameError(
            f"{what} are {matrix.tolist()}, expected [[fx, 0, cx], [0, fy, cy], [0, 0, 1]] in "
            "pixels with fx and fy above 0"
        )
    return matrix


def seconds(value: float, what: str) -> int:
    """Return a time in whole microseconds.

    Raises:
        FrameError: If it is not a finite number.
    """
    if isinstance(value, bool) or not isinstance(value, (int, float, np.number)):
        raise FrameError(f"{what} is {value!r}, expected a number of seconds")
    if not math.isfinite(value) or abs(value) > 1e12:
        raise FrameError(
            f"{what} is {value}, expected a finite number of seconds below 1e12 (times in "
            "microseconds: multiply by 1e-6)"
        )
    return round(float(value) * 1e6)


def _numbers(values: npt.ArrayLike, shape: tuple[int, ...], what: str) -> Matrix:
    try:
        matrix = np.asarray(values, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise FrameError(f"{what} are not numbers, expected {list(shape)}") from error
    if matrix.shape != shape or not np.isfinite(matrix).all():
        found = list(matrix.shape) if matrix.shape != shape else "numbers that are not finite"
        raise FrameError(f"{what} have {found}, expected finite numbers {list(shape)}")
    return matrix
