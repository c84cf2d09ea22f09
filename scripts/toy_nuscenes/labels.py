"""Occupancy labels of a key frame in the formats of Occ3D-nuScenes, OpenOccupancy and SurroundOcc.

All are computed from two parts: the columns of the static world below each label column, and the
surface points of the actors at the key frame's LiDAR time. As in labels made from LiDAR, only
surfaces are occupied (voxels with a free neighbour), and static surfaces stay free if no LiDAR
position of the drive sees them.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import cv2
import numpy as np
import torch

from models.ops import ray_cast
from scripts.toy_nuscenes.classes import LABEL_PRIORITY, Occ
from scripts.toy_nuscenes.lidar import MAX_RANGE_M
from scripts.toy_nuscenes.rig import LIDAR_TRANSLATION, lidar_rotation
from scripts.toy_nuscenes.scene import EgoPose, Scene
from scripts.toy_nuscenes.statics import EMPTY, VOXEL_M
from scripts.toy_nuscenes.visibility import LIDAR, OCC3D_RANGE, CameraView, Visibility

FINE_M = 0.2
OPENOCC_RANGE = (-51.2, -51.2, -5.0, 51.2, 51.2, 3.0)
OPENOCC_VOXEL_M = 0.2
SURROUNDOCC_RANGE = (-50.0, -50.0, -5.0, 50.0, 50.0, 3.0)
SURROUNDOCC_VOXEL_M = 0.5

_RANK = np.zeros(18, np.uint8)
_RANK[[int(occ) for occ in LABEL_PRIORITY]] = np.arange(18)
_OCC_OF_RANK = np.array([int(occ) for occ in LABEL_PRIORITY], np.uint8)
_VIEWPOINTS = 8
NEAR_M = 27.0
NEAR_GROUND_M = 14.0


@dataclass
class Observed:
    """Part of the static world that the LiDAR can see during the drive.

    surfaces: bool [X / 2, Y / 2, Z / 2], 0.4 m cells of the static grid near a visible surface.
    ground: bool [X / 2, Y / 2], the same for the ground plane.
    near: bool [X / 2, Y / 2], cells within `NEAR_M` of a LiDAR position; within `NEAR_GROUND_M`
    for near_ground.
    """

    surfaces: np.ndarray
    ground: np.ndarray
    near: np.ndarray
    near_ground: np.ndarray

    @cached_property
    def fine(self) -> np.ndarray:
        """Mask `surfaces` with as many layers as the static grid: bool [X / 2, Y / 2, Z]."""
        return np.repeat(self.surfaces, 2, axis=2)

    @cached_property
    def close(self) -> Observed:
        """Return the part within the distance of dense sampling.

        Within it, a 32-beam LiDAR samples surfaces densely at 0.2 m.
        """
        return Observed(
            self.surfaces & self.near[..., None],
            self.ground & self.near_ground,
            self.near,
            self.near_ground,
        )


def _dense_directions() -> torch.Tensor:
    elevation = np.deg2rad(np.linspace(-30, 55, 128))
    azimuth = np.arange(900) * (2 * np.pi / 900)
    az, el = np.meshgrid(azimuth, elevation, indexing="ij")
    rays = np.stack([np.cos(el) * np.cos(az), np.cos(el) * np.sin(az), np.sin(el)], -1)
    return torch.from_numpy(rays.reshape(-1, 3).astype(np.float32))


def observe(scene: Scene, duration_s: float) -> Observed:
    """Find the visible part of the static world: cast rays from LiDAR positions along the drive."""
    world = scene.world
    cells = tuple(-(-n // 2) for n in world.grid.shape)
    surfaces, ground = np.zeros(cells, np.uint8), np.zeros(cells[:2], np.uint8)
    x = world.lower[0] + (np.arange(cells[0]) + 0.5) * 2 * VOXEL_M
    y = world.lower[1] + (np.arange(cells[1]) + 0.5) * 2 * VOXEL_M
    floor = np.stack(np.meshgrid(x, y, [0.02], indexing="ij"), -1).reshape(-1, 3)
    dense = _dense_directions()
    nearest = np.full(len(floor), np.inf)
    for time_s in np.linspace(0, duration_s, _VIEWPOINTS):
        ego = scene.ego(float(time_s))
        origin = ego.rotation @ np.array(LIDAR_TRANSLATION) + ego.translation
        start = torch.tensor(origin[None], dtype=torch.float32)
        hits = ray_cast(world.pyramid, start, dense, world.corner, (VOXEL_M,) * 3, EMPTY)
        voxel = hits.voxel[0, 0].numpy()[hits.hit[0, 0].numpy()] // 2
        surfaces[tuple(voxel.T)] = 1
        gap = np.hypot(*(floor - origin)[:, :2].T)
        nearest = np.minimum(nearest, gap)
        new = np.flatnonzero((gap < MAX_RANGE_M) & (ground.reshape(-1) == 0))
        to_floor = torch.from_numpy((floor[new] - origin).astype(np.float32))
        hidden = ray_cast(
            world.pyramid, start, to_floor, world.corner, (VOXEL_M,) * 3, EMPTY, max_distance=1.0
        ).hit
        ground.reshape(-1)[new] = ~hidden[0, 0].numpy()
    gap = nearest.reshape(cells[:2])
    ground = cv2.dilate(ground, np.ones((5, 5), np.uint8)).astype(bool)
    return Observed(_dilate(surfaces).astype(bool), ground, gap < NEAR_M, gap < NEAR_GROUND_M)


def _dilate(grid: np.ndarray) -> np.ndarray:
    """Grow a mask [X, Y, Z] by one cell along each axis."""
    out = grid.copy()
    for axis in range(3):
        grown = out.copy()
        low, high = [slice(None)] * 3, [slice(None)] * 3
        low[axis], high[axis] = slice(None, -1), slice(1, None)
        grown[tuple(low)] |= out[tuple(high)]
        grown[tuple(high)] |= out[tuple(low)]
        out = grown
    return out


@dataclass
class Lattice:
    """Points 0.2 m apart around the vehicle, with class ranks (index into `LABEL_PRIORITY`).

    rank: uint8 [X, Y, Z]. seen: bool [X, Y, Z], whether the point may be labelled: it belongs to an
    actor or to an observed part of the static world (see `Observed`). near: bool [X, Y], as in
    `Observed`.
    """

    rank: np.ndarray
    seen: np.ndarray
    near: np.ndarray


def _lattice(
    scene: Scene,
    observed: Observed,
    time_s: float,
    ego_from_frame: np.ndarray,
    offset: np.ndarray,
    bounds: tuple[float, ...],
) -> Lattice:
    """Sample the world at the voxel centres of a frame that shares the scene's vertical axis.

    Args:
        scene: the world.
        observed: the part that may be labelled.
        time_s: time of the actors and of the ego vehicle.
        ego_from_frame: rotation [3, 3] about the vertical axis.
        offset: position [3] of the frame in the ego frame.
        bounds: minimum and maximum of x, y, z in that frame.
    """
    ego = scene.ego(time_s)
    rotation = ego.rotation @ ego_from_frame
    position = ego.rotation @ offset + ego.translation
    shape = [round((bounds[a + 3] - bounds[a]) / FINE_M) for a in range(3)]
    x, y, z = (bounds[a] + (np.arange(shape[a]) + 0.5) * FINE_M for a in range(3))
    ground_points = (
        np.stack(np.meshgrid(x, y, indexing="ij"), -1) @ rotation[:2, :2].T + position[:2]
    )
    world, grid = scene.world, scene.world.grid
    column = np.floor((ground_points - world.lower) / VOXEL_M).astype(np.int32)
    inside = ((column >= 0) & (column < grid.shape[:2])).all(-1)
    cx, cy = (
        np.clip(column[..., 0], 0, grid.shape[0] - 1),
        np.clip(column[..., 1], 0, grid.shape[1] - 1),
    )
    level = np.floor((z + position[2]) / VOXEL_M + 1e-6).astype(int)
    first = int(np.searchsorted(level, 0))
    top = slice(0, len(level) - first)  # label and world layers have the same height
    rank = np.zeros(shape, np.uint8)
    seen = np.zeros(shape, bool)
    rank_of_slot = _RANK[world.slots.occ]
    rank_of_slot[EMPTY] = 0
    rank[:, :, first:] = cv2.LUT(_columns(grid, cx, cy, top.stop), rank_of_slot)
    seen[:, :, first:] = _columns(observed.fine, cx // 2, cy // 2, top.stop)
    classes = scene.ground.lookup(scene.ground.classes, ground_points.reshape(-1, 2)).reshape(
        shape[:2]
    )
    rank[:, :, :first] = _RANK[classes][..., None]
    seen[:, :, :first] = observed.ground[cx // 2, cy // 2][..., None]
    if not inside.all():
        seen &= inside[..., None]
    _put_actors(scene, time_s, rotation, position, bounds, rank, seen)
    return Lattice(rank, seen, observed.near[cx // 2, cy // 2] & inside)


def _columns(grid: np.ndarray, x: np.ndarray, y: np.ndarray, height: int) -> np.ndarray:
    """Return the lowest `height` voxels of columns of a grid [X, Y, Z] of single bytes.

    The columns are at `x`, `y` [n, m]; the result is [n, m, height]. Copying whole columns is much
    faster than copying voxels.
    """
    part = np.ascontiguousarray(grid[:, :, :height])
    columns = part.view(f"V{part.shape[2]}").reshape(-1)
    index = x.astype(np.int64) * grid.shape[1] + y
    return np.take(columns, index).view(grid.dtype).reshape(*x.shape, part.shape[2])


def _put_actors(
    scene: Scene,
    time_s: float,
    rotation: np.ndarray,
    position: np.ndarray,
    bounds: tuple[float, ...],
    rank: np.ndarray,
    seen: np.ndarray,
) -> None:
    """Add the surface points of the actors to a lattice in place."""
    low = np.asarray(bounds[:3])
    reach = float(np.abs(np.asarray(bounds)).max()) * 1.5
    for posed in scene.posed(time_s):
        if np.hypot(*(posed.position - position)[:2]) > reach + posed.radius:
            continue
        turn = rotation.T @ posed.rotation / FINE_M
        offset = ((posed.position - position) @ rotation - low) / FINE_M
        cells = turn.astype(np.float32) @ posed.actor.model.surface.T
        x, y, z = np.floor(cells + offset[:, None].astype(np.float32)).astype(np.int32)
        inside = (x >= 0) & (x < rank.shape[0]) & (y >= 0) & (y < rank.shape[1])
        inside &= (z >= 0) & (z < rank.shape[2])
        index = ((x * rank.shape[1] + y) * rank.shape[2] + z)[inside]
        flat = rank.reshape(-1)
        flat[index] = np.maximum(flat[index], _RANK[int(posed.actor.occ)])
        seen.reshape(-1)[index] = True


def _surface(solid: np.ndarray) -> np.ndarray:
    """Return the voxels of `solid` [X, Y, Z] with a free neighbour across a face.

    Voxels outside the grid do not count as free.
    """
    free = ~solid
    near = np.zeros_like(solid)
    near[1:] |= free[:-1]
    near[:-1] |= free[1:]
    near[:, 1:] |= free[:, :-1]
    near[:, :-1] |= free[:, 1:]
    near[:, :, 1:] |= free[:, :, :-1]
    near[:, :, :-1] |= free[:, :, 1:]
    return solid & near


def _halve(values: np.ndarray) -> np.ndarray:
    """Return the maximum over blocks of 2 x 2 x 2 of [X, Y, Z]."""
    values = np.maximum(values[::2], values[1::2])
    values = np.maximum(values[:, ::2], values[:, 1::2])
    return np.maximum(values[:, :, ::2], values[:, :, 1::2])


def _pool(values: np.ndarray, voxel_m: float) -> np.ndarray:
    """Return the maximum over the lattice points [X, Y, Z] in each voxel of edge `voxel_m`."""
    for axis in range(3):
        voxel = np.floor((np.arange(values.shape[axis]) + 0.5) * FINE_M / voxel_m)
        first = np.flatnonzero(np.diff(voxel, prepend=-1))
        values = np.maximum.reduceat(values, first, axis=axis)
    return values


@dataclass
class Occ3D:
    """Occ3D labels of a key frame, all [200, 200, 16].

    semantics is uint8; mask_lidar and mask_camera are bool.
    """

    semantics: np.ndarray
    mask_lidar: np.ndarray
    mask_camera: np.ndarray


def openocc_rows(scene: Scene, observed: Observed, time_s: float) -> np.ndarray:
    """Return OpenOccupancy labels int16 [n, 4]: rows (z, y, x, label) in the LiDAR frame.

    Label 0 is noise ('others').
    """
    lattice = _lattice(
        scene,
        observed.close,
        time_s,
        lidar_rotation(),
        np.array(LIDAR_TRANSLATION),
        OPENOCC_RANGE,
    )
    shell = _surface(lattice.rank > 0) & lattice.seen & lattice.near[..., None]
    cells = np.flatnonzero(shell)
    x, y, z = np.unravel_index(cells, shell.shape)
    label = _OCC_OF_RANK[lattice.rank.reshape(-1)[cells]]
    return np.stack([z, y, x, label], 1).astype(np.int16)


def surroundocc_rows(scene: Scene, observed: Observed, time_s: float) -> np.ndarray:
    """Return SurroundOcc labels int64 [n, 4]: rows (x, y, z, label) in the LiDAR frame.

    Label 0 is noise ('others').
    """
    position = np.array(LIDAR_TRANSLATION)
    lattice = _lattice(scene, observed, time_s, lidar_rotation(), position, SURROUNDOCC_RANGE)
    rank = _pool(lattice.rank, SURROUNDOCC_VOXEL_M)
    seen = _pool(lattice.seen.astype(np.uint8), SURROUNDOCC_VOXEL_M).astype(bool)
    index = np.argwhere(_surface(rank > 0) & seen)
    label = _OCC_OF_RANK[rank[tuple(index.T)]]
    return np.c_[index, label].astype(np.int64)


def occ3d(
    scene: Scene,
    observed: Observed,
    time_s: float,
    cameras: list[tuple[np.ndarray, np.ndarray, np.ndarray]],
    image_size: tuple[int, int],
) -> Occ3D:
    """Return the Occ3D labels of a key frame.

    Args:
        scene: the world.
        observed: the part that may be labelled.
        time_s: time of the key frame.
        cameras: per camera its position [3] and rotation [3, 3] (camera to the ego frame of the
            key frame) and its intrinsic matrix [3, 3].
        image_size: width and height in pixels.
    """
    lattice = _lattice(scene, observed, time_s, np.eye(3), np.zeros(3), OCC3D_RANGE)
    rank = _halve(lattice.rank)
    seen = _halve(lattice.seen)
    solid = rank > 0
    shell = _surface(solid) & seen
    semantics = np.where(shell, _OCC_OF_RANK[rank], np.uint8(Occ.FREE))
    known = ~(solid & ~shell)
    visible = Visibility(solid)
    camera = np.zeros(solid.shape, bool)
    for position, rotation, intrinsic in cameras:
        visible.look(position, CameraView(rotation, intrinsic, image_size), camera)
    lidar = np.zeros(solid.shape, bool)
    visible.look(np.array(LIDAR_TRANSLATION), LIDAR, lidar)
    return Occ3D(semantics, lidar & known, camera & known)


def camera_in_key_ego(
    ego: EgoPose, key_ego: EgoPose, translation: np.ndarray, rotation: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Return the pose of a camera in the key frame's ego frame.

    The camera is mounted at `translation`, `rotation` on the vehicle at pose `ego`.
    """
    turn = key_ego.rotation.T @ ego.rotation
    return turn @ translation + key_ego.rotation.T @ (
        ego.translation - key_ego.translation
    ), turn @ rotation
