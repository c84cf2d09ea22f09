"""Static part of a world above the ground: a grid of 0.2 m voxels with slot numbers as values.

A slot is one building, one tree, or one kind of street furniture. `SlotTable` holds its class,
shading, shape and colours; shading can therefore be finer than the voxels.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import IntEnum

import numpy as np
import torch

from models.ops import OccupancyPyramid
from scripts.toy_nuscenes.classes import Occ

VOXEL_M = 0.2
HEIGHT_M = 16.0
EMPTY = 0


class Kind(IntEnum):
    """Shading of the voxels of a slot."""

    PLAIN = 0  # flat faces, one colour with some dirt
    BUILDING = 1  # box with a facade; hits are moved to its true walls
    CANOPY = 2  # foliage of a tree with ellipsoidal shading
    HEDGE = 3  # clipped foliage with flat faces
    STRIPES = 4  # vertical boards
    BARK = 5


@dataclass
class SlotTable:
    """Attributes of up to 255 slots, indexed by slot number.

    occ: uint8 [256], class. kind: uint8 [256]. colour: float32 [256, 3], main reflectance.
    box: float32 [256, 8], for buildings x, y, yaw, half length, half width, eaves height, roof
    rise, number of storeys; for canopies x, y, z of the centre and the three radii.
    style: float32 [256, 12], facade parameters (see `facades.Building`).
    """

    occ: np.ndarray = field(default_factory=lambda: np.full(256, int(Occ.MANMADE), np.uint8))
    kind: np.ndarray = field(default_factory=lambda: np.zeros(256, np.uint8))
    colour: np.ndarray = field(default_factory=lambda: np.full((256, 3), 0.5, np.float32))
    box: np.ndarray = field(default_factory=lambda: np.zeros((256, 8), np.float32))
    style: np.ndarray = field(default_factory=lambda: np.zeros((256, 12), np.float32))
    count: int = 0

    def add(self, occ: Occ, kind: Kind, colour: np.ndarray | tuple) -> int:
        """Allocate the next slot.

        Raises:
            RuntimeError: all 255 slots are taken.
        """
        if self.count == 255:
            raise RuntimeError(
                "a scene has more than 255 static objects; lower the densities of its recipe"
            )
        self.count += 1
        self.occ[self.count], self.kind[self.count] = int(occ), int(kind)
        self.colour[self.count] = colour
        return self.count

    @property
    def room(self) -> int:
        """Return the number of free slots."""
        return 255 - self.count


class StaticWorld:
    """Voxel grid with its slots. `grid` is uint8 [X, Y, Z]; its lower corner is (`lower`, 0)."""

    def __init__(self, lower: np.ndarray, upper: np.ndarray) -> None:
        """Create an empty world between corners [2] in scene metres."""
        size = np.round((upper - lower) / VOXEL_M).astype(int)
        self.lower = lower
        self.grid = np.zeros((int(size[0]), int(size[1]), round(HEIGHT_M / VOXEL_M)), np.uint8)
        self.slots = SlotTable()
        self._pyramid: OccupancyPyramid | None = None

    @property
    def corner(self) -> tuple[float, float, float]:
        """Lower corner of the grid in scene metres."""
        return float(self.lower[0]), float(self.lower[1]), 0.0

    @property
    def pyramid(self) -> OccupancyPyramid:
        """Grid prepared for ray casting; use it only after the grid is complete."""
        if self._pyramid is None:
            self._pyramid = OccupancyPyramid(torch.from_numpy(self.grid)[None], EMPTY)
        return self._pyramid

    def window(
        self, centre: np.ndarray, radius: float
    ) -> tuple[slice, slice, np.ndarray, np.ndarray]:
        """Return the columns around a point: index slices and centres x [nx, 1], y [1, ny]."""
        low = np.clip(
            np.floor((centre - radius - self.lower) / VOXEL_M).astype(int), 0, self.grid.shape[:2]
        )
        high = np.clip(
            np.ceil((centre + radius - self.lower) / VOXEL_M).astype(int), 0, self.grid.shape[:2]
        )
        x = self.lower[0] + (np.arange(low[0], high[0]) + 0.5) * VOXEL_M
        y = self.lower[1] + (np.arange(low[1], high[1]) + 0.5) * VOXEL_M
        return slice(low[0], high[0]), slice(low[1], high[1]), x[:, None], y[None, :]

    def put_box(
        self,
        slot: int,
        centre: tuple[float, float],
        yaw: float,
        half: tuple[float, float],
        bottom: float,
        top: np.ndarray | float,
        rise: float = 0.0,
    ) -> None:
        """Fill an upright box with a gable roof of `rise` metres along its length.

        Args:
            slot: slot number to write.
            centre: x, y of the centre.
            yaw: direction of the length.
            half: half length and half width; each at least 0.1 m, so that every box contains voxel
                centres.
            bottom: lower z.
            top: upper z of the walls.
            rise: height of the ridge above the walls.
        """
        half = (max(half[0], VOXEL_M * 0.71), max(half[1], VOXEL_M * 0.71))
        i, j, x, y = self.window(np.asarray(centre), float(np.hypot(*half)) + VOXEL_M)
        dx, dy = x - centre[0], y - centre[1]
        along = dx * np.cos(yaw) + dy * np.sin(yaw)
        across = -dx * np.sin(yaw) + dy * np.cos(yaw)
        inside = (np.abs(along) <= half[0]) & (np.abs(across) <= half[1])
        height = top + rise * (1 - np.abs(across) / half[1])
        z = (np.arange(self.grid.shape[2]) + 0.5) * VOXEL_M
        mask = inside[..., None] & (z >= bottom) & (z < height[..., None])
        self.grid[i, j][mask] = slot

    def put_ellipsoid(
        self,
        slot: int,
        centre: np.ndarray,
        radii: np.ndarray,
        rough: np.ndarray | None,
        cone: float = 0.0,
    ) -> None:
        """Fill an ellipsoid (a cone for `cone` = 1), eroded by noise `rough` [n, n, n] in 0...1."""
        i, j, x, y = self.window(centre[:2], float(max(radii[:2])) + VOXEL_M)
        z = (np.arange(self.grid.shape[2]) + 0.5) * VOXEL_M
        k = slice(*np.searchsorted(z, [centre[2] - radii[2], centre[2] + radii[2]]))
        w = (z[k] - centre[2]) / radii[2]
        flat = ((x - centre[0]) / radii[0]) ** 2 + ((y - centre[1]) / radii[1]) ** 2
        radius = (
            np.sqrt(flat[..., None] + w**2) * (1 - cone)
            + cone * (np.sqrt(flat)[..., None] * 2 + w) * 0.97
        )
        if rough is not None:
            index = [np.arange(n) % rough.shape[0] for n in radius.shape]
            radius = radius + rough[np.ix_(*index)] * 0.35
        block = self.grid[i, j, k]
        block[(radius < 1) & (block == EMPTY)] = slot
