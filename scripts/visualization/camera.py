"""Pinhole cameras of the pictures, and the views that place them around the ego vehicle.

Dimension letters: H image rows, W image columns, N points or pixels.
Frames: "world" is the frame that the camera was made in. The views below make cameras in the ego
frame (x forward, y left, z up, metres); `Camera.transformed` moves one into a grid's frame.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from loaders.errors import BadDataError

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Camera:
    """An ideal pinhole camera.

    Attributes:
        position: [3] optical centre in metres.
        rotation: [3, 3] rows are the camera's right, down and forward axes in the world frame.
        focal_px: focal length in columns.
        width: image columns.
        height: image rows.
        centre_px: column and row of the principal point; None: the centre of the image.
        aspect: focal length in rows divided by that in columns; 1 for square pixels.
    """

    position: Array
    rotation: Array
    focal_px: float
    width: int
    height: int
    centre_px: tuple[float, float] | None = None
    aspect: float = 1.0

    @staticmethod
    def from_projection(world2img: Array, width: int, height: int) -> Camera:
        """Return the camera of a projection matrix.

        Args:
            world2img: [4, 4] (or [3, 4]) metres to (column * w, row * w, w).
            width: image columns.
            height: image rows.

        Raises:
            BadDataError: the matrix does not describe a pinhole camera.
        """
        matrix = np.asarray(world2img, dtype=np.float64)[:3]
        if matrix.shape != (3, 4) or abs(np.linalg.det(matrix[:, :3])) < 1e-9:
            raise BadDataError(
                f"projection matrix {matrix.shape} does not describe a pinhole camera."
            )
        # The intrinsic matrix is triangular: an RQ decomposition, which is a reversed QR one.
        turn = np.eye(3)[::-1]
        q, r = np.linalg.qr((turn @ matrix[:, :3]).T)
        intrinsic, rotation = turn @ r.T @ turn, turn @ q.T
        signs = np.sign(np.diag(intrinsic))
        intrinsic, rotation = intrinsic * signs, signs[:, None] * rotation
        intrinsic = intrinsic / intrinsic[2, 2]
        return Camera(
            position=-np.linalg.solve(matrix[:, :3], matrix[:, 3]),
            rotation=rotation,
            focal_px=float(intrinsic[0, 0]),
            width=width,
            height=height,
            centre_px=(float(intrinsic[0, 2]), float(intrinsic[1, 2])),
            aspect=float(intrinsic[1, 1] / intrinsic[0, 0]),
        )

    @property
    def centre(self) -> tuple[float, float]:
        """Column and row of the principal point."""
        return self.centre_px or (0.5 * self.width, 0.5 * self.height)

    @staticmethod
    def look_at(
        position: tuple[float, float, float],
        target: tuple[float, float, float],
        up: tuple[float, float, float],
        horizontal_fov_deg: float,
        width: int,
        height: int,
    ) -> Camera:
        """Return the camera at `position` with `target` in its centre and `up` pointing up."""
        eye = np.asarray(position, dtype=np.float64)
        forward = np.asarray(target, dtype=np.float64) - eye
        forward /= np.linalg.norm(forward)
        right = np.cross(forward, np.asarray(up, dtype=np.float64))
        right /= np.linalg.norm(right)
        down = np.cross(forward, right)
        focal = 0.5 * width / math.tan(math.radians(horizontal_fov_deg) / 2)
        return Camera(eye, np.stack([right, down, forward]), focal, width, height)

    def local_directions(self, pixels: Tensor) -> Tensor:
        """Return unit viewing directions [N, 3] in the camera's own axes: right, down, forward."""
        focal = pixels.new_tensor([self.focal_px, self.focal_px * self.aspect])
        plane = (pixels - pixels.new_tensor(self.centre)) / focal
        local = F.pad(plane, (0, 1), value=1.0)
        return local / local.norm(dim=1, keepdim=True)

    def directions(self, pixels: Tensor) -> Tensor:
        """Return unit viewing directions.

        Args:
            pixels: float [N, 2] column and row; the first pixel's centre is (0.5, 0.5).

        Returns:
            [N, 3] in the world frame, of the pixels' type.
        """
        return self.local_directions(pixels) @ torch.from_numpy(self.rotation).to(pixels)

    def project(self, points: Array) -> tuple[Array, Array]:
        """Project points.

        Args:
            points: [N, 3] metres, world frame.

        Returns:
            [N, 2] column and row in pixels, and [N] depth along the optical axis in metres
            (0 or less: behind the camera, the pixel is then invalid).
        """
        local = (points - self.position) @ self.rotation.T
        depth = local[:, 2]
        safe = np.where(depth > 1e-9, depth, 1e-9)
        pixels = local[:, :2] / safe[:, None] * self.focal_px
        pixels[:, 1] *= self.aspect
        return pixels + np.array(self.centre), depth

    def transformed(self, world2other: Array) -> Camera:
        """Return the same camera in another frame.

        Args:
            world2other: [4, 4] transform: rigid, or with mirroring (a flipped label grid).
        """
        linear = world2other[:3, :3]
        return replace(
            self,
            position=linear @ self.position + world2other[:3, 3],
            rotation=self.rotation @ linear.T,
        )

    def resized(self, width: int, height: int) -> Camera:
        """Return the same view with the same horizontal field on a raster of another size."""
        factor = width / self.width
        centre = None
        if self.centre_px is not None:
            shift = self.centre_px[1] - 0.5 * self.height
            centre = (self.centre_px[0] * factor, 0.5 * height + shift * factor)
        return replace(
            self, focal_px=self.focal_px * factor, width=width, height=height, centre_px=centre
        )


def chase_view(width: int, height: int, extent_m: float = 40.0, turn: float = 0.0) -> Camera:
    """Return the camera behind and above the ego vehicle (ego frame).

    Args:
        width: image columns.
        height: image rows.
        extent_m: half the side of the area of interest; the distance grows with it.
        turn: not used; this camera follows the vehicle.
    """
    scale = extent_m / 40.0
    return Camera.look_at(
        position=(-34.0 * scale, 0.0, 27.0 * scale),
        target=(4.5 * scale, 0.0, 0.0),
        up=(0.0, 0.0, 1.0),
        horizontal_fov_deg=_wide_enough(60.0, width / height),
        width=width,
        height=height,
    )


def orbit_view(width: int, height: int, extent_m: float = 40.0, turn: float = 0.0) -> Camera:
    """Return the camera on a circle around the ego vehicle, starting at its rear right (ego frame).

    Args:
        width: image columns.
        height: image rows.
        extent_m: half the side of the area of interest, which stays in view during the turn.
        turn: share of the full circle, anticlockwise seen from above.
    """
    scale = extent_m / 40.0
    angle = math.radians(-145.0) + 2 * math.pi * turn
    return Camera.look_at(
        position=(44.0 * scale * math.cos(angle), 44.0 * scale * math.sin(angle), 31.0 * scale),
        target=(0.0, 0.0, -1.5 * scale),
        up=(0.0, 0.0, 1.0),
        horizontal_fov_deg=_wide_enough(62.0, width / height),
        width=width,
        height=height,
    )


def front_view(width: int, height: int, extent_m: float = 40.0, turn: float = 0.0) -> Camera:
    """Return the camera above the roof that looks along the road (ego frame).

    Args:
        width: image columns.
        height: image rows.
        extent_m: not used.
        turn: not used.
    """
    return Camera.look_at(
        position=(-6.5, 0.0, 4.2),
        target=(10.0, 0.0, 0.6),
        up=(0.0, 0.0, 1.0),
        horizontal_fov_deg=_wide_enough(82.0, width / height),
        width=width,
        height=height,
    )


def top_view(width: int, height: int, extent_m: float = 40.0, turn: float = 0.0) -> Camera:
    """Return the bird's-eye camera, forward pointing up (ego frame).

    It is far away with a long focal length, so lines of sight are nearly parallel.

    Args:
        width: image columns.
        height: image rows.
        extent_m: half the side of the area that fills the shorter side of the image.
        turn: not used.
    """
    distance = 40.0 * extent_m
    half = extent_m * max(width / height, 1.0)
    return Camera.look_at(
        position=(0.0, 0.0, distance),
        target=(0.0, 0.0, 0.0),
        up=(1.0, 0.0, 0.0),
        horizontal_fov_deg=2 * math.degrees(math.atan(half / distance)),
        width=width,
        height=height,
    )


def _wide_enough(fov_deg: float, aspect: float) -> float:
    """Return the horizontal field of view for a panel of any shape.

    It shows the same part of the scene as `fov_deg` at 7:5.
    """
    # Wider panels than 1.9 show more at the sides.
    slope = math.tan(math.radians(0.5 * fov_deg)) * min(aspect, 1.9) / 1.4
    return 2 * math.degrees(math.atan(slope))


VIEWS: dict[str, Callable[[int, int, float, float], Camera]] = {
    "chase": chase_view,
    "top": top_view,
    "orbit": orbit_view,
    "front": front_view,
}
"""Views by name: functions of (width, height, extent_m, turn)."""
