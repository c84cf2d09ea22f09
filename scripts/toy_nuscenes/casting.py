"""Finds what rays hit: the static world, the ground plane, or an actor at its pose at that
moment.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from enum import IntEnum
from functools import cached_property

import cv2
import numpy as np
import torch

from models.ops import ray_cast
from scripts.toy_nuscenes.actors import Actor
from scripts.toy_nuscenes.rig import yaw_rotation
from scripts.toy_nuscenes.statics import EMPTY, VOXEL_M, Kind, StaticWorld

FAR = np.float32(1e6)


class What(IntEnum):
    """What a ray hit."""

    NOTHING = 0
    GROUND = 1
    STATIC = 2
    ACTOR = 3


@dataclass
class Hits:
    """Where n rays end; entries that do not apply are 0.

    what: uint8 [n] of `What`. distance: float32 [n] metres, `FAR` where nothing is hit.
    slot: uint8 [n] of the static world. actor: int16 [n], index of the actor.
    voxel: int32 [n, 3] in the actor model's grid. face: int8 [n] as in `RayHits`, of the static
    world or the model.
    free_rays: per actor the number of rays that would hit it if it stood alone; seen_rays: those
    that do hit it.
    """

    what: np.ndarray
    distance: np.ndarray
    slot: np.ndarray
    actor: np.ndarray
    voxel: np.ndarray
    face: np.ndarray
    free_rays: np.ndarray
    seen_rays: np.ndarray


@dataclass(frozen=True)
class PosedActor:
    """An actor at a moment: `rotation` [3, 3] turns model vectors into scene vectors."""

    index: int
    actor: Actor
    position: np.ndarray
    rotation: np.ndarray
    yaw: float

    @cached_property
    def centre(self) -> np.ndarray:
        """Middle of its box [3] in scene metres."""
        return self.position + np.array([0.0, 0.0, self.actor.model.size[2] / 2])

    @cached_property
    def radius(self) -> float:
        """Radius of the ball around its box."""
        return math.hypot(*self.actor.model.size) / 2

    def points(self) -> np.ndarray:
        """Surface points float32 [n, 3] in scene metres."""
        return self.actor.model.surface @ self.rotation.T.astype(np.float32) + self.position.astype(
            np.float32
        )


def pose_actor(index: int, actor: Actor, time_s: float) -> PosedActor:
    """An actor at its pose at a time."""
    x, y, yaw = actor.motion.pose(time_s)
    return PosedActor(index, actor, np.array([x, y, 0.0]), yaw_rotation(yaw), yaw)


@dataclass
class _Static:
    """Static hits of n rays: hit bool, distance float32, slot uint8, face int8."""

    hit: np.ndarray
    distance: np.ndarray
    slot: np.ndarray
    face: np.ndarray


def _cast_static(world: StaticWorld, origin: np.ndarray, directions: np.ndarray) -> _Static:
    rays = torch.from_numpy(np.ascontiguousarray(directions, np.float32))
    start = torch.tensor(origin[None], dtype=torch.float32)
    result = ray_cast(world.pyramid, start, rays, world.corner, (VOXEL_M,) * 3, EMPTY)
    hit = result.hit[0, 0].numpy()
    rows = np.flatnonzero(hit)
    slot = np.zeros(len(hit), np.uint8)
    slot[rows] = world.grid[tuple(np.take(result.voxel[0, 0].numpy(), rows, 0).T)]
    distance = np.where(hit, result.t_enter[0, 0].numpy(), FAR)
    return _Static(hit, distance, slot, result.face[0, 0].numpy())


def _cast_static_image(
    world: StaticWorld, origin: np.ndarray, directions: np.ndarray, shape: tuple[int, int]
) -> _Static:
    """As `_cast_static` for the pixels of an image, casting one ray in four where that is enough.

    Between four rays that meet the same wall, or nothing, the pixels are filled in: a wall is a
    plane, and shading moves its hits to the true plane anyway. Everywhere else each pixel gets its
    own ray.
    """
    height, width = shape
    grid = directions.reshape(height, width, 3)
    coarse = _cast_static(world, origin, grid[::2, ::2].reshape(-1, 3))
    low = ((height + 1) // 2, (width + 1) // 2)
    # A wall that is askew shows two kinds of side faces; only its top counts as another face.
    key = (coarse.slot.astype(np.int16) * 2 + (coarse.face == 5)).reshape(low)
    flat = (world.slots.kind[coarse.slot] == Kind.BUILDING) | ~coarse.hit
    uneven = ~flat.reshape(low)
    uneven[1:] |= key[1:] != key[:-1]
    uneven[:-1] |= key[1:] != key[:-1]
    uneven[:, 1:] |= key[:, 1:] != key[:, :-1]
    uneven[:, :-1] |= key[:, 1:] != key[:, :-1]
    full = np.repeat(np.repeat(uneven, 2, 0), 2, 1)[:height, :width]
    full[:, -1 if width % 2 == 0 else width :] = 1
    full[-1 if height % 2 == 0 else height :] = 1
    out = [
        np.repeat(np.repeat(a.reshape(low), 2, 0), 2, 1)[:height, :width].copy()
        for a in (coarse.hit, coarse.distance, coarse.slot, coarse.face)
    ]
    near = 1 / coarse.distance.reshape(low)
    columns, rows = np.arange(width, dtype=np.float32) / 2, np.arange(height, dtype=np.float32) / 2
    u, v = np.meshgrid(np.minimum(columns, low[1] - 1), np.minimum(rows, low[0] - 1))
    out[1] = 1 / cv2.remap(near, u, v, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
    chosen = np.flatnonzero(full)
    fine = _cast_static(world, origin, np.take(directions, chosen, 0))
    for target, values in zip(out, (fine.hit, fine.distance, fine.slot, fine.face), strict=True):
        target.reshape(-1)[chosen] = values
    return _Static(*(a.reshape(-1) for a in out))


@dataclass(frozen=True)
class ImageFrame:
    """The camera whose pixels rays go through, row by row.

    origin: [3] and rotation: [3, 3] (camera to scene) of the camera; intrinsic: [3, 3]; height,
    width in pixels.
    """

    origin: np.ndarray
    rotation: np.ndarray
    intrinsic: np.ndarray
    height: int
    width: int

    def windows(self, actors: list[PosedActor]) -> np.ndarray:
        """Rows and columns that the actors' boxes cover.

        Returns:
            int [n, 4]: first row, end row, first column, end column; empty if out of sight.
        """
        half = np.array([p.actor.model.size for p in actors]) / 2
        turn = np.array([p.rotation for p in actors])
        corners = np.einsum('nij,ncj->nci', turn, _CORNERS * half[:, None])
        corners += np.array([p.centre for p in actors])[:, None]
        local = (corners - self.origin) @ self.rotation
        near = 0.05
        a, b = local[:, _EDGES[:, 0]], local[:, _EDGES[:, 1]]
        crossing = (a[..., 2] > near) != (b[..., 2] > near)
        rise = np.where(crossing, b[..., 2] - a[..., 2], 1.0)
        cut = a + (b - a) * ((near - a[..., 2]) / rise)[..., None]
        points = np.concatenate([local, cut], 1)
        valid = np.concatenate([local[..., 2] > near, crossing], 1)
        pixels = points @ self.intrinsic.T
        pixels = pixels[..., :2] / np.where(valid, pixels[..., 2], 1.0)[..., None]
        low = np.where(valid[..., None], pixels, np.inf).min(1)
        high = np.where(valid[..., None], pixels, -np.inf).max(1)
        size = (self.width, self.height)
        low = np.clip(np.floor(np.clip(low, -1e6, 1e6)), 0, size).astype(int)
        high = np.clip(np.ceil(np.clip(high, -1e6, 1e6)) + 1, 0, size).astype(int)
        return np.stack([low[:, 1], high[:, 1], low[:, 0], high[:, 0]], 1)

    def candidates(self, actors: list[PosedActor]) -> list[tuple[PosedActor, np.ndarray]]:
        """The actors in view with the indices of the pixels that may see them."""
        if not actors:
            return []
        out = []
        for posed, (row, end_row, column, end) in zip(actors, self.windows(actors), strict=True):
            if row < end_row and column < end:
                rows = np.arange(row, end_row)[:, None] * self.width
                out.append((posed, (rows + np.arange(column, end)).reshape(-1)))
        return out


_CORNERS = np.array([(x, y, z) for x in (-1.0, 1.0) for y in (-1.0, 1.0) for z in (-1.0, 1.0)])
_EDGES = np.array([(a, b) for a in range(8) for b in range(a + 1, 8) if bin(a ^ b).count('1') == 1])


def cast(
    world: StaticWorld,
    actors: list[PosedActor],
    num_actors: int,
    origin: np.ndarray,
    directions: np.ndarray,
    image: ImageFrame | None = None,
    count_free: bool = False,
) -> Hits:
    """Casts rays from one point.

    Args:
        world: the static world.
        actors: those that may be hit.
        num_actors: number of all actors of the scene, the length of the ray counts.
        origin: [3] in scene metres, above the ground.
        directions: unit float32 [n, 3] in the scene frame.
        image: given if the rays are those of an image, row by row; that saves some of the work.
        count_free: whether to fill `free_rays`, for which hidden actors are cast at too.
    """
    count = len(directions)
    if image is None:
        static = _cast_static(world, origin, directions)
    else:
        static = _cast_static_image(world, origin, directions, (image.height, image.width))
    distance = static.distance
    what = np.where(static.hit, np.uint8(What.STATIC), np.uint8(What.NOTHING))
    down = np.minimum(directions[:, 2], np.float32(-1e-5))
    plane = np.where(directions[:, 2] < -1e-5, np.float32(-origin[2]) / down, FAR)
    on_ground = plane < distance
    distance = np.where(on_ground, plane, distance).astype(np.float32)
    what[on_ground] = What.GROUND
    hits = Hits(
        what,
        distance,
        static.slot,
        np.zeros(count, np.int16),
        np.zeros((count, 3), np.int32),
        static.face,
        np.zeros(num_actors, np.int32),
        np.zeros(num_actors, np.int32),
    )
    if image is None:
        candidates = [(posed, _in_ball(posed, origin, directions)) for posed in actors]
    else:
        candidates = image.candidates(actors)
    gaps = {p.index: math.dist(p.centre, origin) - p.radius for p, _ in candidates}
    for posed, chosen in sorted(candidates, key=lambda pair: gaps[pair[0].index]):
        if not count_free:
            chosen = chosen[hits.distance[chosen] > gaps[posed.index]]
        if len(chosen):
            _cast_actor(hits, posed, origin, directions, chosen)
    seen = np.bincount(hits.actor[hits.what == What.ACTOR], minlength=num_actors)
    hits.seen_rays += seen.astype(np.int32)
    return hits


def _in_ball(posed: PosedActor, origin: np.ndarray, directions: np.ndarray) -> np.ndarray:
    """Indices of the rays that meet the ball around an actor."""
    towards = posed.centre - origin
    gap = float(np.linalg.norm(towards))
    ratio = min(1.0, posed.radius / max(gap, 1e-9))
    limit = np.float32(np.sqrt(1 - ratio**2) if gap > posed.radius else -1.0)
    return np.flatnonzero(directions @ (towards / max(gap, 1e-9)).astype(np.float32) >= limit)


def _cast_actor(
    hits: Hits, posed: PosedActor, origin: np.ndarray, directions: np.ndarray, chosen: np.ndarray
) -> None:
    """Lets one actor take those of the `chosen` rays that hit it first."""
    model = posed.actor.model
    local = torch.from_numpy(np.take(directions, chosen, 0) @ posed.rotation.astype(np.float32))
    start = torch.from_numpy(((origin - posed.position) @ posed.rotation).astype(np.float32)[None])
    result = ray_cast(model.pyramid, start, local, model.corner, model.voxel, 0)
    hit = result.hit[0, 0].numpy()
    hits.free_rays[posed.index] += int(np.count_nonzero(hit))
    distance = result.t_enter[0, 0].numpy()
    nearer = np.flatnonzero(hit & (distance < hits.distance[chosen]))
    rows = chosen[nearer]
    hits.what[rows] = What.ACTOR
    hits.distance[rows] = distance[nearer]
    hits.actor[rows] = posed.index
    hits.voxel[rows] = np.take(result.voxel[0, 0].numpy(), nearer, 0)
    hits.face[rows] = result.face[0, 0].numpy()[nearer]
