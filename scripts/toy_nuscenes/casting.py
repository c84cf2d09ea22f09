"""Finds what rays hit: the static world, the ground plane, or an actor at its pose at that moment."""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum

import numpy as np
import torch

from models.ops import ray_cast
from scripts.toy_nuscenes.actors import Actor
from scripts.toy_nuscenes.rig import yaw_rotation
from scripts.toy_nuscenes.statics import EMPTY, VOXEL_M, StaticWorld

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
    voxel: int32 [n, 3] in the static world's or the actor model's grid. face: int8 [n] as in `RayHits`.
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


def cast(world: StaticWorld, actors: list[PosedActor], num_actors: int, origin: np.ndarray,
         directions: np.ndarray) -> Hits:  # fmt: skip
    """Casts rays from one point.

    Args:
        world: the static world.
        actors: those that may be hit.
        num_actors: number of all actors of the scene, the length of the ray counts.
        origin: [3] in scene metres, above the ground.
        directions: unit float32 [n, 3] in the scene frame.
    """
    count = len(directions)
    rays = torch.from_numpy(np.ascontiguousarray(directions, np.float32))
    start = torch.tensor(origin[None], dtype=torch.float32)
    static = ray_cast(world.pyramid, start, rays, world.corner, (VOXEL_M,) * 3, EMPTY)
    hit = static.hit[0, 0].numpy()
    distance = np.where(hit, static.t_enter[0, 0].numpy(), FAR)
    voxel = static.voxel[0, 0].numpy()
    face = static.face[0, 0].numpy()
    slot = np.zeros(count, np.uint8)
    slot[hit] = world.grid[tuple(voxel[hit].T)]
    what = np.where(hit, np.uint8(What.STATIC), np.uint8(What.NOTHING))
    with np.errstate(divide='ignore'):
        plane = np.where(directions[:, 2] < -1e-5, -np.float32(origin[2]) / directions[:, 2], FAR)
    on_ground = plane < distance
    distance = np.where(on_ground, plane, distance).astype(np.float32)
    what[on_ground] = What.GROUND
    hits = Hits(what, distance, slot, np.zeros(count, np.int16), voxel, face,
                np.zeros(num_actors, np.int32), np.zeros(num_actors, np.int32))  # fmt: skip
    axis = directions.mean(0)
    spread = float((directions @ (axis / max(float(np.linalg.norm(axis)), 1e-9))).min())
    for posed in actors:
        _cast_actor(hits, posed, origin, directions, axis, spread)
    np.add.at(hits.seen_rays, hits.actor[hits.what == What.ACTOR], 1)
    return hits


def _cast_actor(hits: Hits, posed: PosedActor, origin: np.ndarray, directions: np.ndarray, axis: np.ndarray,
                spread: float) -> None:  # fmt: skip
    """Lets one actor take the rays that hit it first; `axis` and `spread` bound the directions by a cone."""
    towards = posed.centre - origin
    gap = float(np.linalg.norm(towards))
    towards = towards / max(gap, 1e-9)
    ratio = min(1.0, posed.radius / max(gap, 1e-9))
    length = float(np.linalg.norm(axis))
    if gap > posed.radius and length > 0.05:
        between = np.arccos(np.clip(float(towards @ axis) / length, -1, 1))
        if between > np.arccos(np.clip(spread, -1, 1)) + np.arcsin(ratio):
            return
    limit = np.sqrt(1 - ratio**2) if gap > posed.radius else -1.0
    chosen = np.flatnonzero(directions @ towards.astype(np.float32) >= limit)
    if len(chosen) == 0:
        return
    model = posed.actor.model
    local = torch.from_numpy(directions[chosen] @ posed.rotation.astype(np.float32))
    start = torch.from_numpy(((origin - posed.position) @ posed.rotation).astype(np.float32)[None])
    result = ray_cast(model.pyramid, start, local, model.corner, model.voxel, 0)
    hit = result.hit[0, 0].numpy()
    hits.free_rays[posed.index] += int(hit.sum())
    nearer = hit & (result.t_enter[0, 0].numpy() < hits.distance[chosen])
    rows = chosen[nearer]
    hits.what[rows] = What.ACTOR
    hits.distance[rows] = result.t_enter[0, 0].numpy()[nearer]
    hits.actor[rows] = posed.index
    hits.voxel[rows] = result.voxel[0, 0].numpy()[nearer]
    hits.face[rows] = result.face[0, 0].numpy()[nearer]
