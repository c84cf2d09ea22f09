"""Which voxels of an Occ3D label grid a sensor can see, by casting rays through the grid.

A free voxel is seen if the ray that comes nearest to its centre passes it before it hits anything.
An occupied voxel is seen if a ray hits it first, or if the straight line to the middle of one of
its free sides is free: rays are some tenths of a degree apart, and would leave stripes on ground
that is looked at from a low angle.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch

from models.ops import OccupancyPyramid, ray_cast
from scripts.toy_nuscenes.arrays import f32
from scripts.toy_nuscenes.rig import LIDAR_ELEVATION_DEG

OCC3D_RANGE = (-40.0, -40.0, -1.0, 40.0, 40.0, 5.4)
OCC3D_VOXEL_M = 0.4
RAY_STEP_RAD = 0.0063
"""Angle between neighbouring rays: 0.25 m at 40 m, so that every voxel is met by the ray next to
its centre."""


class View(Protocol):
    """The field of view of a sensor, sampled by rays. Vectors are relative to the sensor, in the
    label frame.
    """

    def rays(self) -> np.ndarray:
        """Unit directions float32 [n, 3]."""

    def nearest_ray(self, vectors: np.ndarray) -> np.ndarray:
        """Index int64 [m] of the ray next to each of float32 [m, 3] vectors, -1 outside the
        view.
        """


@dataclass
class CameraView:
    """View of a camera: `rotation` [3, 3] from the camera to the label frame, `intrinsic` [3, 3],
    size (W, H) pixels.
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

    def nearest_ray(self, vectors: np.ndarray) -> np.ndarray:
        """See `View`."""
        local = vectors @ (self.rotation @ self.intrinsic.T).astype(np.float32)
        depth = np.maximum(local[:, 2], 1e-3)
        u, v = local[:, 0] / depth + 0.5, local[:, 1] / depth + 0.5
        inside = (local[:, 2] > 0.1) & (u >= 0) & (u < self.size[0]) & (v >= 0) & (v < self.size[1])
        index = np.full(len(vectors), -1)
        row = np.minimum(v[inside] / self._step, self._rows - 1).astype(np.int64)
        column = np.minimum(u[inside] / self._step, self._columns - 1).astype(np.int64)
        index[inside] = row * self._columns + column
        return index


class LidarView:
    """View of the LiDAR: all around, between its lowest and its highest beam."""

    def __init__(self) -> None:
        self._low, self._high = np.deg2rad(LIDAR_ELEVATION_DEG)
        self._turns = int(np.ceil(2 * np.pi / RAY_STEP_RAD))
        self._levels = int(np.ceil((self._high - self._low) / RAY_STEP_RAD))

    def rays(self) -> np.ndarray:
        """See `View`."""
        azimuth = (np.arange(self._turns) + 0.5) * (2 * np.pi / self._turns)
        elevation = (
            self._low + (np.arange(self._levels) + 0.5) * (self._high - self._low) / self._levels
        )
        el, az = np.meshgrid(elevation, azimuth, indexing='ij')
        rays = np.stack([np.cos(el) * np.cos(az), np.cos(el) * np.sin(az), np.sin(el)], -1)
        return rays.reshape(-1, 3).astype(np.float32)

    def nearest_ray(self, vectors: np.ndarray) -> np.ndarray:
        """See `View`."""
        flat = np.hypot(vectors[:, 0], vectors[:, 1])
        share = (np.arctan2(vectors[:, 2], flat) - self._low) / (self._high - self._low)
        inside = (share >= 0) & (share < 1)
        azimuth = np.mod(np.arctan2(vectors[:, 1], vectors[:, 0]), 2 * np.pi) / (2 * np.pi)
        turn = np.minimum(azimuth * self._turns, self._turns - 1).astype(np.int64)
        return np.where(inside, (share * self._levels).astype(np.int64) * self._turns + turn, -1)


class Visibility:
    """Answers for one label grid what can be seen from where; solid: bool [X, Y, Z]."""

    def __init__(self, solid: np.ndarray) -> None:
        self.shape = solid.shape
        self.grid = OccupancyPyramid(
            torch.from_numpy(np.ascontiguousarray(solid, dtype=np.uint8))[None], 0
        )
        self._low = f32(OCC3D_RANGE[:3])
        free = np.argwhere(~solid)
        self._free = np.ravel_multi_index(tuple(free.T), self.shape)
        self._free_centres = ((free + 0.5) * np.float32(OCC3D_VOXEL_M) + self._low).astype(
            np.float32
        )
        sides, owners = [], []
        for axis in range(3):
            for step in (-1, 1):
                cells = np.argwhere(solid & _neighbour_free(solid, axis, step))
                shift = np.zeros(3, np.float32)
                shift[axis] = step * 0.505
                sides.append((cells + 0.5 + shift) * np.float32(OCC3D_VOXEL_M) + self._low)
                owners.append(cells)
        self._sides = np.concatenate(sides).astype(np.float32)
        self._side_owners = np.ravel_multi_index(tuple(np.concatenate(owners).T), self.shape)

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

    def seen_from(self, position: np.ndarray, view: View) -> np.ndarray:
        """Voxels bool [X, Y, Z] that a sensor at `position` [3] in the label frame sees."""
        seen = np.zeros(self.shape, bool)
        flat = seen.reshape(-1)
        hit, distance, voxel = self._cast(position, view.rays())
        seen[tuple(voxel[hit].T)] = True
        reach = np.where(hit, distance, np.inf)
        vectors = self._free_centres - position.astype(np.float32)
        ray = view.nearest_ray(vectors)
        inside = ray >= 0
        near = np.sqrt(np.einsum('ij,ij->i', vectors[inside], vectors[inside])) < reach[ray[inside]]
        flat[self._free[inside][near]] = True
        vectors = self._sides - position.astype(np.float32)
        inside = view.nearest_ray(vectors) >= 0
        blocked, _, _ = self._cast(position, vectors[inside], 1.0)
        flat[self._side_owners[inside][~blocked]] = True
        return seen


def _neighbour_free(solid: np.ndarray, axis: int, step: int) -> np.ndarray:
    """Whether the neighbour of each voxel along an axis is free; beyond the grid nothing is."""
    out = np.roll(~solid, -step, axis)
    edge = [slice(None)] * 3
    edge[axis] = slice(-1, None) if step > 0 else slice(0, 1)
    out[tuple(edge)] = False
    return out
