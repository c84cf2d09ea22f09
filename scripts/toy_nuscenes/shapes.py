"""Voxel models (the shapes are in `vehicles` and `props`).

Frame of a model: x forward, y left, z up, origin on the ground below the centre. Voxel values are
`Mat` numbers, which shading converts to colours.
"""

from __future__ import annotations

from enum import IntEnum

import numpy as np
import torch
from scipy.ndimage import binary_erosion, gaussian_filter

from models.ops import OccupancyPyramid

Point = tuple[float, float]


class Mat(IntEnum):
    """Materials of model voxels. Instances set the colours of PAINT, PAINT2, TOP and LEGS."""

    EMPTY = 0
    PAINT = 1
    PAINT2 = 2
    TOP = 3
    LEGS = 4
    GLASS = 5
    TYRE = 6
    RIM = 7
    HEADLIGHT = 8
    TAILLIGHT = 9
    TRIM = 10
    METAL = 11
    PLATE = 12
    SKIN = 13
    HAIR = 14
    ORANGE = 15
    WHITE = 16
    RED = 17
    YELLOW = 18
    WOOD = 19
    TRACK = 20


class Model:
    """Voxel model.

    Attributes:
        size: length, width and height of its box in metres.
        voxel: voxel edge in metres.
        grid: uint8 [X, Y, Z] of `Mat`.
        normals: float32 [X, Y, Z, 3], smooth outward normals near the surface.
        surface: float32 [n, 3], centres of the voxels with an empty neighbour.
        pyramid: the grid prepared for ray casting.
    """

    def __init__(self, size: tuple[float, float, float], voxel: float) -> None:
        """Create an empty grid of a size (length, width, height) and voxel edge, metres."""
        cells = [max(1, round(edge / voxel)) for edge in size]
        self.size = size
        self.voxel = tuple(edge / n for edge, n in zip(size, cells, strict=True))
        self.corner = (-size[0] / 2, -size[1] / 2, 0.0)
        self.grid = np.zeros(cells, np.uint8)
        x, y, z = (
            low + (np.arange(n) + 0.5) * v
            for low, n, v in zip(self.corner, cells, self.voxel, strict=True)
        )
        self.x, self.y, self.z = x[:, None, None], y[None, :, None], z[None, None, :]

    def put(self, mat: Mat, mask: np.ndarray) -> None:
        """Fill the voxels of a mask that broadcasts to [X, Y, Z]."""
        self.grid[np.broadcast_to(mask, self.grid.shape)] = mat

    def box(self, mat: Mat, x: Point, y: Point, z: Point) -> None:
        """Fill a box given by its bounds along each axis."""
        inside = (self.x >= x[0]) & (self.x <= x[1]) & (self.y >= y[0]) & (self.y <= y[1])
        self.put(mat, inside & (self.z >= z[0]) & (self.z <= z[1]))

    def wheel(self, x: float, y: Point, radius: float, hub: float = 0.55) -> None:
        """Add a wheel across y at `x` on the ground."""
        distance = np.hypot(self.x - x, self.z - radius)
        across = (self.y >= y[0]) & (self.y <= y[1])
        self.put(Mat.TYRE, (distance <= radius) & across)
        self.put(Mat.RIM, (distance <= radius * hub) & across)

    def ball(
        self, mat: Mat, centre: tuple[float, float, float], radii: tuple[float, float, float]
    ) -> None:
        """Fill an ellipsoid."""
        x, y, z = (
            (a - c) / r for a, c, r in zip((self.x, self.y, self.z), centre, radii, strict=True)
        )
        self.put(mat, x**2 + y**2 + z**2 <= 1)

    def bar(
        self, mat: Mat, a: tuple[float, float, float], b: tuple[float, float, float], radius: float
    ) -> None:
        """Fill a round bar from point `a` to point `b`."""
        p, q = np.array(a), np.array(b)
        d = q - p
        t = ((self.x - p[0]) * d[0] + (self.y - p[1]) * d[1] + (self.z - p[2]) * d[2]) / float(
            d @ d
        )
        t = np.clip(t, 0, 1)
        gap = (
            (self.x - p[0] - t * d[0]) ** 2
            + (self.y - p[1] - t * d[1]) ** 2
            + (self.z - p[2] - t * d[2]) ** 2
        )
        self.put(mat, gap <= radius**2)

    def finish(self) -> Model:
        """Compute normals, surface points and ray casting masks after the grid is filled."""
        solid = self.grid > 0
        padded = np.pad(solid, 3).astype(np.float32)
        smooth = gaussian_filter(padded, 1.3)
        gradient = np.stack(np.gradient(smooth), -1)[3:-3, 3:-3, 3:-3]
        length = np.linalg.norm(gradient, axis=-1, keepdims=True)
        self.normals = (-gradient / np.maximum(length, 1e-6)).astype(np.float32)
        inner = binary_erosion(np.pad(solid, 1), iterations=1)[1:-1, 1:-1, 1:-1]
        cells = np.argwhere(solid & ~inner)
        self.surface = ((cells + 0.5) * self.voxel + self.corner).astype(np.float32)
        self.pyramid = OccupancyPyramid(torch.from_numpy(self.grid)[None], 0)
        return self
