"""Finds what rays hit: the static world, the ground plane, or an actor at its pose at that moment."""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum

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
    voxel: int32 [n, 3] in the actor model's grid. face: int8 [n] as in `RayHits`, of the static world or the model.
    free_rays: per actor the number of rays that would hit it if it stood alone; seen_rays: those that do hit it.
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

    @property
    def centre(self) -> np.ndarray:
        """Middle of its box [3] in scene metres."""
        return self.position + (0.0, 0.0, self.actor.model.size[2] / 2)

    @property
    def radius(self) -> float:
        """Radius of the ball around its box."""
        return float(np.linalg.norm(self.actor.model.size)) / 2

    def points(self) -> np.ndarray:
        """Surface points float32 [n, 3] in scene metres."""
        return self.actor.model.surface @ self.rotation.T.astype(np.float32) + self.position.astype(np.float32)


def pose_actors(actors: list[Actor], time_s: float, near: np.ndarray, reach: float) -> list[PosedActor]:
    """The actors within `reach` metres of a point `near` [2] at a time."""
    out = []
    for index, actor in enumerate(actors):
        x, y, yaw = actor.motion.pose(time_s)
        if np.hypot(x - near[0], y - near[1]) < reach:
            out.append(PosedActor(index, actor, np.array([x, y, 0.0]), yaw_rotation(yaw), yaw))
    return out


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


def _cast_static_image(world: StaticWorld, origin: np.ndarray, directions: np.ndarray, shape: tuple[int, int]) -> _Static:
    """As `_cast_static` for the pixels of an image, but casts only one ray in four where that is enough.

    Between four rays that meet the same wall, or nothing, the pixels are filled in: a wall is a plane, and shading
    moves its hits to the true plane anyway. Everywhere else each pixel gets its own ray.
    """
    height, width = shape
    grid = directions.reshape(height, width, 3)
    coarse = _cast_static(world, origin, grid[::2, ::2].reshape(-1, 3))
    low = ((height + 1) // 2, (width + 1) // 2)
    key = (coarse.slot.astype(np.int16) * 2 + (coarse.face == 5)).reshape(low)  # walls may be hit on any side face
    flat = (world.slots.kind[coarse.slot] == Kind.BUILDING) | ~coarse.hit
    uneven = ~flat.reshape(low)
    uneven[1:] |= key[1:] != key[:-1]
    uneven[:-1] |= key[1:] != key[:-1]
    uneven[:, 1:] |= key[:, 1:] != key[:, :-1]
    uneven[:, :-1] |= key[:, 1:] != key[:, :-1]
    uneven = cv2.dilate(uneven.astype(np.uint8), np.ones((3, 3), np.uint8))
    full = np.repeat(np.repeat(uneven, 2, 0), 2, 1)[:height, :width]
    full[:, -1 if width % 2 == 0 else width :] = 1
    full[-1 if height % 2 == 0 else height :] = 1
    out = [np.repeat(np.repeat(a.reshape(low), 2, 0), 2, 1)[:height, :width].copy() for a in
           (coarse.hit, coarse.distance, coarse.slot, coarse.face)]  # fmt: skip
    near = 1 / coarse.distance.reshape(low)
    rows, columns = np.minimum(np.arange(height) / 2, low[0] - 1), np.minimum(np.arange(width) / 2, low[1] - 1)
    u, v = np.meshgrid(columns.astype(np.float32), rows.astype(np.float32))
    out[1] = 1 / cv2.remap(near, u, v, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
    chosen = np.flatnonzero(full)
    fine = _cast_static(world, origin, np.take(directions, chosen, 0))
    for target, values in zip(out, (fine.hit, fine.distance, fine.slot, fine.face), strict=True):
        target.reshape(-1)[chosen] = values
    return _Static(*(a.reshape(-1) for a in out))


def cast(world: StaticWorld, actors: list[PosedActor], num_actors: int, origin: np.ndarray,
         directions: np.ndarray, image: tuple[int, int] | None = None) -> Hits:  # fmt: skip
    """Casts rays from one point.

    Args:
        world: the static world.
        actors: those that may be hit.
        num_actors: number of all actors of the scene, the length of the ray counts.
        origin: [3] in scene metres, above the ground.
        directions: unit float32 [n, 3] in the scene frame.
        image: height and width if the rays are those of an image, row by row; that saves some of the work.
    """
    count = len(directions)
    static = _cast_static(world, origin, directions) if image is None else _cast_static_image(world, origin, directions, image)
    distance = static.distance
    what = np.where(static.hit, np.uint8(What.STATIC), np.uint8(What.NOTHING))
    down = np.minimum(directions[:, 2], np.float32(-1e-5))
    plane = np.where(directions[:, 2] < -1e-5, np.float32(-origin[2]) / down, FAR)
    on_ground = plane < distance
    distance = np.where(on_ground, plane, distance).astype(np.float32)
    what[on_ground] = What.GROUND
    hits = Hits(what, distance, static.slot, np.zeros(count, np.int16), np.zeros((count, 3), np.int32), static.face,
                np.zeros(num_actors, np.int32), np.zeros(num_actors, np.int32))  # fmt: skip
    for posed in _in_sight(actors, origin, directions, image is not None):
        _cast_actor(hits, posed, origin, directions)
    seen = np.bincount(hits.actor[hits.what == What.ACTOR], minlength=num_actors)
    hits.seen_rays += seen.astype(np.int32)
    return hits


def _in_sight(actors: list[PosedActor], origin: np.ndarray, directions: np.ndarray, one_side: bool) -> list[PosedActor]:
    """The actors, nearest first, whose ball meets the cone around the directions (if they look to one side)."""
    if not actors:
        return []
    towards = np.array([posed.centre for posed in actors]) - origin
    radius = np.array([posed.radius for posed in actors])
    gap = np.linalg.norm(towards, axis=1)
    order = np.argsort(gap, kind='stable')
    if one_side:
        axis = directions.mean(0).astype(np.float64)
        axis /= np.linalg.norm(axis)
        spread = np.arccos(np.clip(float((directions @ axis.astype(np.float32)).min()), -1, 1))
        between = np.arccos(np.clip(towards @ axis / np.maximum(gap, 1e-9), -1, 1))
        size = np.arcsin(np.minimum(1.0, radius / np.maximum(gap, 1e-9)))
        inside = (gap < radius) | (between < spread + size)
        order = order[inside[order]]
    return [actors[k] for k in order]


def _cast_actor(hits: Hits, posed: PosedActor, origin: np.ndarray, directions: np.ndarray) -> None:
    """Lets one actor take the rays that hit it first."""
    towards = posed.centre - origin
    gap = float(np.linalg.norm(towards))
    ratio = min(1.0, posed.radius / max(gap, 1e-9))
    limit = np.float32(np.sqrt(1 - ratio**2) if gap > posed.radius else -1.0)
    chosen = np.flatnonzero(directions @ (towards / max(gap, 1e-9)).astype(np.float32) >= limit)
    if len(chosen) == 0:
        return
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
