"""Visibility of the voxels of an Occ3D label grid from a sensor, by casting rays through the grid.

A free voxel is seen if the ray nearest to its centre passes it before it hits anything. An occupied
voxel is seen if a ray hits it first, or if the straight line to the centre of one of its free sides
is free. Without the second rule there would be stripes on ground seen at a low angle, because rays
are some tenths of a degree apart.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Protocol

import numpy as np
import torch

from models.ops import OccupancyPyramid, ray_cast
from scripts.toy_nuscenes.arrays import f32
from scripts.toy_nuscenes.rig import LIDAR_ELEVATION_DEG

OCC3D_RANGE = (-40.0, -40.0, -1.0, 40.0, 40.0, 5.4)
OCC3D_VOXEL_M = 0.4
RAY_STEP_RAD = 0.0063
"""Angle between neighbouring rays: 0.25 m at 40 m, so that the ray nearest to a voxel's centre hits
the voxel."""

_DIRECTIONS = [(axis, step) for axis in range(3) for step in (-1, 1)]
_OFF_SIDE_M = 0.005 * OCC3D_VOXEL_M  # distance of the target point from the centre of a side
_CLEARLY_BEHIND_M = 1.5  # up to 120 m to the side, the line moves less than 0.2 m within 2 mm


class View(Protocol):
    """Field of view of a sensor, sampled by rays, in the label frame."""

    def rays(self) -> np.ndarray:
        """Return unit directions float32 [n, 3]."""

    def nearest_ray(self, vectors: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Look up vectors float32 [3, m] relative to the sensor.

        Returns:
            The indices int64 [k] of the vectors in view, and for each of them the index int64 [k]
            of the nearest ray.
        """


@dataclass
class CameraView:
    """View of a camera.

    `rotation` [3, 3] from the camera to the label frame, `intrinsic` [3, 3], size (W, H) pixels.
    """

    rotation: np.ndarray
    intrinsic: np.ndarray
    size: tuple[int, int]

    def __post_init__(self) -> None:
        self._step = max(RAY_STEP_RAD * float(self.intrinsic[0, 0]), 1e-3)
        self._columns = int(np.ceil(self.size[0] / self._step))
        self._rows = int(np.ceil(self.size[1] / self._step))

    def rays(self) -> np.ndarray:
        """See `View`."""
        u, v = np.meshgrid(
            (np.arange(self._columns) + 0.5) * self._step,
            (np.arange(self._rows) + 0.5) * self._step,
        )
        pixels = np.stack(
            [
                np.minimum(u, self.size[0]) - 0.5,
                np.minimum(v, self.size[1]) - 0.5,
                np.ones(u.shape),
            ],
            -1,
        )
        rays = pixels.reshape(-1, 3) @ (self.rotation @ np.linalg.inv(self.intrinsic)).T
        return (rays / np.linalg.norm(rays, axis=1, keepdims=True)).astype(np.float32)

    def nearest_ray(self, vectors: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """See `View`."""
        local = (self.rotation @ self.intrinsic.T).T.astype(np.float32) @ vectors
        depth = np.maximum(local[2], np.float32(1e-3))
        u, v = local[0] / depth + np.float32(0.5), local[1] / depth + np.float32(0.5)
        inside = (local[2] > 0.1) & (u >= 0) & (u < self.size[0]) & (v >= 0) & (v < self.size[1])
        rows = np.flatnonzero(inside)
        row = np.minimum(v[rows] / self._step, self._rows - 1).astype(np.int64)
        column = np.minimum(u[rows] / self._step, self._columns - 1).astype(np.int64)
        return rows, row * self._columns + column


class LidarView:
    """View of the LiDAR: all around, between its lowest and highest beam; see `LIDAR`."""

    def __init__(self) -> None:
        self._low, self._high = np.deg2rad(LIDAR_ELEVATION_DEG)
        self._turns = int(np.ceil(2 * np.pi / RAY_STEP_RAD))
        self._levels = int(np.ceil((self._high - self._low) / RAY_STEP_RAD))

    def rays(self) -> np.ndarray:
        """See `View`."""
        return self._rays

    @cached_property
    def _rays(self) -> np.ndarray:
        azimuth = (np.arange(self._turns) + 0.5) * (2 * np.pi / self._turns)
        elevation = (
            self._low + (np.arange(self._levels) + 0.5) * (self._high - self._low) / self._levels
        )
        el, az = np.meshgrid(elevation, azimuth, indexing="ij")
        rays = np.stack([np.cos(el) * np.cos(az), np.cos(el) * np.sin(az), np.sin(el)], -1)
        return rays.reshape(-1, 3).astype(np.float32)

    def nearest_ray(self, vectors: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """See `View`."""
        x, y, z = vectors
        share = (np.arctan2(z, np.hypot(x, y)) - self._low) / (self._high - self._low)
        rows = np.flatnonzero((share >= 0) & (share < 1))
        azimuth = np.mod(np.arctan2(y[rows], x[rows]), 2 * np.pi) / (2 * np.pi)
        turn = np.minimum(azimuth * self._turns, self._turns - 1).astype(np.int64)
        return rows, (share[rows] * self._levels).astype(np.int64) * self._turns + turn


LIDAR = LidarView()


class Visibility:
    """Visibility in one label grid; solid: bool [X, Y, Z]."""

    def __init__(self, solid: np.ndarray) -> None:
        self.shape = solid.shape
        self.grid = OccupancyPyramid(
            torch.from_numpy(np.ascontiguousarray(solid, dtype=np.uint8))[None], 0
        )
        self._low = f32(OCC3D_RANGE[:3])
        self._free = np.flatnonzero(~solid)
        self._free_centres = self._centres(self._free)
        sides, owners = [], []
        for axis, step in _DIRECTIONS:
            cells = np.flatnonzero(solid & _neighbour_free(solid, axis, step))
            centres = self._centres(cells)
            centres[axis] += np.float32(step * (0.5 * OCC3D_VOXEL_M + _OFF_SIDE_M))
            sides.append(centres)
            owners.append(cells)
        self._sides = np.concatenate(sides, 1)
        self._side_owners = np.concatenate(owners)
        self._side_ends = np.cumsum([len(cells) for cells in owners])

    def _centres(self, cells: np.ndarray) -> np.ndarray:
        """Return the centres float32 [3, n] of voxels given by flat indices [n]."""
        edge = np.float32(OCC3D_VOXEL_M)
        half = np.float32(0.5)
        parts = zip(np.unravel_index(cells, self.shape), self._low, strict=True)
        return np.stack([(index.astype(np.float32) + half) * edge + low for index, low in parts])

    def _cast(
        self, position: np.ndarray, rays: np.ndarray, limit: float = np.inf
    ) -> tuple[np.ndarray, ...]:
        start = torch.tensor(position[None], dtype=torch.float32)
        hits = ray_cast(
            self.grid,
            start,
            torch.from_numpy(rays),
            OCC3D_RANGE[:3],
            (OCC3D_VOXEL_M,) * 3,
            0,
            limit,
        )
        return hits.hit[0, 0].numpy(), hits.t_enter[0, 0].numpy(), hits.voxel[0, 0].numpy()

    def _may_face(self, position: np.ndarray) -> np.ndarray:
        """Return whether each side [n] may be visible from a position [3], given its orientation.

        A line from far enough behind a side passes through the voxel of the side.
        """
        out = np.empty(len(self._side_owners), bool)
        start = 0
        for (axis, step), end in zip(_DIRECTIONS, self._side_ends, strict=True):
            behind = np.float32(step) * (self._sides[axis, start:end] - np.float32(position[axis]))
            np.less(behind, np.float32(_CLEARLY_BEHIND_M), out=out[start:end])
            start = end
        return out

    def look(self, position: np.ndarray, view: View, seen: np.ndarray) -> None:
        """Mark voxels seen by a sensor at `position` [3] (label frame) in `seen` bool [X, Y, Z].

        Voxels that are already marked are not tested again.
        """
        flat = seen.reshape(-1)
        hit, distance, voxel = self._cast(position, view.rays())
        seen[tuple(voxel[hit].T)] = True
        reach = np.where(hit, distance, np.float32(np.inf))
        here = position.astype(np.float32)[:, None]
        new = np.flatnonzero(~flat[self._free])
        vectors = np.take(self._free_centres, new, 1) - here
        inside, ray = view.nearest_ray(vectors)
        vectors = np.take(vectors, inside, 1)
        near = np.einsum("ij,ij->j", vectors, vectors) < np.square(reach[ray])
        flat[self._free[new[inside[near]]]] = True
        new = np.flatnonzero(~flat[self._side_owners] & self._may_face(position))
        vectors = np.take(self._sides, new, 1) - here
        inside, _ = view.nearest_ray(vectors)
        blocked, _, _ = self._cast(position, np.ascontiguousarray(vectors[:, inside].T), 1.0)
        flat[self._side_owners[new[inside[~blocked]]]] = True


def _neighbour_free(solid: np.ndarray, axis: int, step: int) -> np.ndarray:
    """Return whether each voxel's neighbour along an axis is free; outside the grid it is not."""
    out = np.roll(~solid, -step, axis)
    edge = [slice(None)] * 3
    edge[axis] = slice(-1, None) if step > 0 else slice(0, 1)
    out[tuple(edge)] = False
    return out
