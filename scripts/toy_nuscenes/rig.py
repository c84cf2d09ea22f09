"""Sensor rig: mounting, intrinsics and LiDAR beam pattern, in the proportions of nuScenes' car.

Frames: ego x forward, y left, z up, origin on the ground; camera x right, y down, z along the
optical axis; LiDAR x right, y forward, z up. A rotation matrix `A_from_B` rotates column vectors of
frame B into frame A.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np

REFERENCE_WIDTH = 1600
REFERENCE_HEIGHT = 900
LIDAR_NAME = "LIDAR_TOP"
LIDAR_BEAMS = 32
LIDAR_ELEVATION_DEG = (-30.7, 10.7)
LIDAR_TRANSLATION = (0.94, 0.0, 1.84)


@dataclass(frozen=True)
class Camera:
    """Camera of the rig; focal length and principal point refer to a 1600x900 image."""

    name: str
    translation: tuple[float, float, float]
    yaw_deg: float
    focal_px: float
    principal_px: tuple[float, float]
    trigger_offset_us: (
        int  # nuScenes triggers a camera when the rotating LiDAR passes its view, before sweep end
    )

    def rotation(self) -> np.ndarray:
        """Return the rotation [3, 3] from the camera to the ego frame."""
        yaw = np.deg2rad(self.yaw_deg)
        cos, sin = np.cos(yaw), np.sin(yaw)
        right, down, forward = (sin, -cos, 0.0), (0.0, 0.0, -1.0), (cos, sin, 0.0)
        return np.array([right, down, forward]).T

    def intrinsic(self, width: int, height: int) -> np.ndarray:
        """Return the pinhole matrix [3, 3] in pixels for an image size.

        The focal length is scaled with the width.
        """
        scale = width / REFERENCE_WIDTH
        focal = self.focal_px * scale
        centre_x = self.principal_px[0] * scale
        centre_y = self.principal_px[1] * height / REFERENCE_HEIGHT
        return np.array([[focal, 0.0, centre_x], [0.0, focal, centre_y], [0.0, 0.0, 1.0]])

    @lru_cache(maxsize=32)  # noqa: B019 - cameras are constants
    def ray_directions(self, width: int, height: int) -> np.ndarray:
        """Return unit directions through the pixels: float64 [height * width, 3], read-only.

        Pixels are in row order. Pixel (u, v) is centred on the image point (u, v), as in the
        nuScenes devkit. The directions are in the camera frame.
        """
        matrix = self.intrinsic(width, height)
        u, v = np.meshgrid(np.arange(width), np.arange(height))
        x, y = (u - matrix[0, 2]) / matrix[0, 0], (v - matrix[1, 2]) / matrix[1, 1]
        rays = np.stack([x, y, np.ones(u.shape)], -1).reshape(-1, 3)
        rays /= np.linalg.norm(rays, axis=-1, keepdims=True)
        rays.setflags(write=False)
        return rays


CAMERAS: tuple[Camera, ...] = (
    Camera("CAM_FRONT", (1.70, 0.02, 1.51), 0.0, 1266.0, (816.0, 491.0), -35_000),
    Camera("CAM_FRONT_RIGHT", (1.55, -0.49, 1.50), -55.0, 1261.0, (808.0, 496.0), -27_000),
    Camera("CAM_FRONT_LEFT", (1.52, 0.49, 1.51), 55.0, 1273.0, (827.0, 480.0), -43_000),
    Camera("CAM_BACK", (0.03, 0.00, 1.58), 180.0, 809.0, (829.0, 481.0), -10_000),
    Camera("CAM_BACK_LEFT", (1.04, 0.48, 1.59), 110.0, 1257.0, (792.0, 493.0), -1_000),
    Camera("CAM_BACK_RIGHT", (1.01, -0.48, 1.56), -110.0, 1260.0, (807.0, 501.0), -20_000),
)


def lidar_rotation() -> np.ndarray:
    """Return the rotation [3, 3] from the LiDAR to the ego frame (LiDAR x right, y forward)."""
    return np.array([[0.0, 1.0, 0.0], [-1.0, 0.0, 0.0], [0.0, 0.0, 1.0]])


def lidar_directions(num_azimuths: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the directions of one turn of the LiDAR.

    Args:
        num_azimuths: firings per turn.

    Returns:
        Unit directions [num_azimuths * 32, 3] in the LiDAR frame and their ring indices uint8
        [num_azimuths * 32] (0 is the lowest beam).
    """
    elevation = np.deg2rad(np.linspace(*LIDAR_ELEVATION_DEG, LIDAR_BEAMS))
    azimuth = np.arange(num_azimuths) * (2 * np.pi / num_azimuths)
    az, el = np.meshgrid(azimuth, elevation, indexing="ij")
    rays = np.stack([np.cos(el) * np.cos(az), np.cos(el) * np.sin(az), np.sin(el)], -1)
    rings = np.broadcast_to(np.arange(LIDAR_BEAMS, dtype=np.uint8), az.shape)
    return rays.reshape(-1, 3), rings.reshape(-1).copy()


def yaw_rotation(yaw: float) -> np.ndarray:
    """Return the rotation [3, 3] about the z axis by `yaw` radians."""
    cos, sin = np.cos(yaw), np.sin(yaw)
    return np.array([[cos, -sin, 0.0], [sin, cos, 0.0], [0.0, 0.0, 1.0]])


def yaw_quaternion(yaw: float) -> list[float]:
    """Return the quaternion (w, x, y, z) of a rotation about the z axis by `yaw` radians."""
    return [float(np.cos(yaw / 2)), 0.0, 0.0, float(np.sin(yaw / 2))]


def matrix_quaternion(rotation: np.ndarray) -> list[float]:
    """Return the quaternion (w, x, y, z), w >= 0, of a rotation matrix [3, 3]."""
    from scipy.spatial.transform import Rotation

    x, y, z, w = Rotation.from_matrix(rotation).as_quat()
    sign = 1.0 if w >= 0 else -1.0
    return [float(sign * w), float(sign * x), float(sign * y), float(sign * z)]
