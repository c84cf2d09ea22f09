"""Ray casting: rays hit the static world, the ground plane, or actors at their current poses."""

from __future__ import annotations

import math
from dataclasses import dataclass
from enum import IntEnum
from functools import cached_property, lru_cache

import cv2
import numpy as np
import torch

from models.ops import ray_cast
from scripts.toy_nuscenes.actors import Actor
from scripts.toy_nuscenes.rig import yaw_rotation
from scripts.toy_nuscenes.statics import EMPTY, VOXEL_M, Kind, StaticWorld

FAR = np.float32(1e6)
Window = tuple[slice, slice]


class What(IntEnum):
    """Kinds of surfaces that rays hit."""

    NOTHING = 0
    GROUND = 1
    STATIC = 2
    ACTOR = 3


@dataclass
class Hits:
    """Hits of n rays; entries that do not apply are 0.

    what: uint8 [n] of `What`. distance: float32 [n] metres, `FAR` if nothing is hit.
    slot: uint8 [n] of the static world. actor: int16 [n], index of the actor.
    voxel: int32 [n, 3] in the actor model's grid. face: int8 [n] as in `RayHits`, of the static
    world or the model.
    free_rays: per actor the number of rays that would hit it without occlusion; seen_rays: the
    number that hit it.
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
    """Actor at a moment: `rotation` [3, 3] rotates model vectors to scene vectors."""

    index: int
    actor: Actor
    position: np.ndarray
    rotation: np.ndarray
    yaw: float

    @cached_property
    def centre(self) -> np.ndarray:
        """Centre of its box [3] in scene metres."""
        return self.position + np.array([0.0, 0.0, self.actor.model.size[2] / 2])

    @cached_property
    def radius(self) -> float:
        """Radius of the bounding sphere of its box."""
        return math.hypot(*self.actor.model.size) / 2

    def points(self) -> np.ndarray:
        """Return the surface points float32 [n, 3] in scene metres."""
        return self.actor.model.surface @ self.rotation.T.astype(np.float32) + self.position.astype(
            np.float32
        )


def pose_actor(index: int, actor: Actor, pose: tuple[float, float, float]) -> PosedActor:
    """Return an actor at a pose (x, y, yaw)."""
    x, y, yaw = pose
    return PosedActor(index, actor, np.array([x, y, 0.0]), yaw_rotation(yaw), yaw)


def _gaps(actors: list[PosedActor], position: np.ndarray) -> np.ndarray:
    """Return the distances [n] from a position [3] to the actors' boxes; 0 inside.

    The distances are in metres and reduced by 1 mm.
    """
    if not actors:
        return np.zeros(0)
    away = position - np.array([p.centre for p in actors])
    local = np.einsum("ni,nij->nj", away, np.array([p.rotation for p in actors]))
    beyond = np.maximum(np.abs(local) - np.array([p.actor.model.size for p in actors]) / 2, 0)
    return np.maximum(np.sqrt(np.einsum("ni,ni->n", beyond, beyond)) - 1e-3, 0)


@dataclass
class _Static:
    """Static hits of n rays.

    hit bool, distance float32, slot uint8, face int8 [n], voxel int32 [n, 3].
    """

    hit: np.ndarray
    distance: np.ndarray
    slot: np.ndarray
    face: np.ndarray
    voxel: np.ndarray

    def surface(self, world: StaticWorld) -> np.ndarray:
        """Return the numbers int32 [n] of the planes hit, 0 for none.

        All sides of a building count as one plane: a rotated wall has two kinds of voxel faces.
        """
        side, slot = np.maximum(self.face, 0), self.slot.astype(np.int32)
        x, y, z = self.voxel.T
        level = np.where(side < 2, x, np.where(side < 4, y, z))
        building = (world.slots.kind == Kind.BUILDING)[self.slot]
        plane = np.where(building, slot * 2 + (side == 5), (slot * 6 + side) * 4096 + level)
        return np.where(self.hit, plane, 0)


def _cast_static(world: StaticWorld, origin: np.ndarray, directions: np.ndarray) -> _Static:
    rays = torch.from_numpy(np.ascontiguousarray(directions, np.float32))
    start = torch.tensor(origin[None], dtype=torch.float32)
    result = ray_cast(world.pyramid, start, rays, world.corner, (VOXEL_M,) * 3, EMPTY)
    hit, voxel = result.hit[0, 0].numpy(), result.voxel[0, 0].numpy()
    x, y, z = voxel.T
    cell = (x * world.grid.shape[1] + y) * world.grid.shape[2] + z
    slot = np.where(hit, np.take(world.grid.reshape(-1), np.where(hit, cell, 0)), np.uint8(0))
    distance = np.where(hit, result.t_enter[0, 0].numpy(), FAR)
    return _Static(hit, distance, slot, result.face[0, 0].numpy(), voxel)


def _cast_static_image(
    world: StaticWorld, origin: np.ndarray, directions: np.ndarray, shape: tuple[int, int]
) -> _Static:
    """Cast the pixels of an image like `_cast_static`, with one ray in four where possible.

    If four neighbouring rays hit the same plane, or nothing, the pixels between them are
    interpolated: the inverse distance of a plane is linear in the image. (Shading moves hits on a
    building to its true walls.) Other pixels get their own rays. `voxel` is not interpolated.
    """
    height, width = shape
    grid = directions.reshape(height, width, 3)
    coarse = _cast_static(world, origin, grid[::2, ::2].reshape(-1, 3))
    low = ((height + 1) // 2, (width + 1) // 2)
    uneven = _doubled(_edges(coarse.surface(world).reshape(low)), shape)
    # The last row and column have coarse rays on one side only, unless they are cast themselves.
    uneven[:, -1 if width % 2 == 0 else width :] = True
    uneven[-1 if height % 2 == 0 else height :] = True
    near = (1 / coarse.distance).reshape(low)
    near = cv2.remap(near, *_half(height, width), cv2.INTER_LINEAR)
    out = _Static(
        _doubled(coarse.hit.reshape(low), shape).reshape(-1),
        (1 / near).reshape(-1),
        _doubled(coarse.slot.reshape(low), shape).reshape(-1),
        _doubled(coarse.face.reshape(low), shape).reshape(-1),
        coarse.voxel,
    )
    chosen = np.flatnonzero(uneven)
    fine = _cast_static(world, origin, np.take(directions, chosen, 0))
    out.hit[chosen], out.distance[chosen] = fine.hit, fine.distance
    out.slot[chosen], out.face[chosen] = fine.slot, fine.face
    return out


def _edges(values: np.ndarray) -> np.ndarray:
    """Return whether values [H, W] differ from one of the four neighbours: bool [H, W]."""
    out = np.zeros(values.shape, bool)
    down, right = values[1:] != values[:-1], values[:, 1:] != values[:, :-1]
    out[1:] |= down
    out[:-1] |= down
    out[:, 1:] |= right
    out[:, :-1] |= right
    return out


def _doubled(values: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    """Return an image of single bytes at twice its size, cropped to `shape`."""
    size = (2 * values.shape[1], 2 * values.shape[0])
    large = cv2.resize(values.view(np.uint8), size, interpolation=cv2.INTER_NEAREST)
    return large[: shape[0], : shape[1]].copy().view(values.dtype)


@lru_cache(maxsize=2)
def _half(height: int, width: int) -> tuple[np.ndarray, np.ndarray]:
    """Return pixel columns and rows float32 [H, W] in the image of every second pixel."""
    columns, rows = np.arange(width, dtype=np.float32) / 2, np.arange(height, dtype=np.float32) / 2
    last = np.float32((width - 1) // 2), np.float32((height - 1) // 2)
    u, v = np.meshgrid(np.minimum(columns, last[0]), np.minimum(rows, last[1]))
    return u, v


@dataclass(frozen=True)
class ImageFrame:
    """Camera whose pixels the rays pass through, row by row.

    origin: [3] and rotation: [3, 3] (camera to scene) of the camera; intrinsic: [3, 3]; height,
    width in pixels.
    """

    origin: np.ndarray
    rotation: np.ndarray
    intrinsic: np.ndarray
    height: int
    width: int

    def windows(self, actors: list[PosedActor]) -> np.ndarray:
        """Return the rows and columns covered by the actors' boxes.

        Returns:
            int [n, 4]: first row, end row, first column, end column; empty if not visible.
        """
        half = np.array([p.actor.model.size for p in actors]) / 2
        turn = np.array([p.rotation for p in actors])
        corners = np.einsum("nij,ncj->nci", turn, _CORNERS * half[:, None])
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

    def candidates(self, actors: list[PosedActor]) -> list[tuple[PosedActor, Window]]:
        """Return the actors in view, with the pixel rows and columns that may show them."""
        actors = self._in_sight(actors)
        if not actors:
            return []
        out = []
        for posed, (row, end_row, column, end) in zip(actors, self.windows(actors), strict=True):
            if row < end_row and column < end:
                out.append((posed, (slice(row, end_row), slice(column, end))))
        return out

    @cached_property
    def _sides(self) -> np.ndarray:
        """Unit normals [2, 2] that point inwards from the left and right edges of the view."""
        edges = (np.array([0.0, self.width - 1.0]) - self.intrinsic[0, 2]) / self.intrinsic[0, 0]
        right, forward = self.rotation[:2, 0], self.rotation[:2, 2]
        normals = np.stack([right - edges[0] * forward, edges[1] * forward - right])
        return normals / np.linalg.norm(normals, axis=1, keepdims=True)

    def may_see(self, centre: np.ndarray, radius: float) -> bool:
        """Return whether anything within a distance of a vertical line may be in view.

        The line passes through `centre` [2]; `radius` is in metres. The camera must be level.
        """
        return bool((self._sides @ (centre - self.origin[:2]) > -radius).all())

    def _in_sight(self, actors: list[PosedActor]) -> list[PosedActor]:
        """Return the actors at least partly between the left and right edges of the view."""
        away = np.array([p.centre[:2] for p in actors]).reshape(-1, 2) - self.origin[:2]
        margin = np.array([p.radius for p in actors]) + 0.1
        inside = (away @ self._sides.T > -margin[:, None]).all(1)
        return [actors[k] for k in np.flatnonzero(inside)]

    def pixels_beyond(self, distance: np.ndarray, window: Window, limit: float) -> np.ndarray:
        """Return the pixel indices of a window with `distance` float32 [H * W] above a limit."""
        beyond = distance.reshape(self.height, self.width)[window] > limit
        return _pixel_indices(self.height, self.width)[window][beyond]


@lru_cache(maxsize=2)
def _pixel_indices(height: int, width: int) -> np.ndarray:
    return np.arange(height * width).reshape(height, width)


_CORNERS = np.array([(x, y, z) for x in (-1.0, 1.0) for y in (-1.0, 1.0) for z in (-1.0, 1.0)])
_EDGES = np.array([(a, b) for a in range(8) for b in range(a + 1, 8) if bin(a ^ b).count("1") == 1])


def cast(
    world: StaticWorld,
    actors: list[PosedActor],
    num_actors: int,
    origin: np.ndarray,
    directions: np.ndarray,
    image: ImageFrame | None = None,
    count_free: bool = False,
) -> Hits:
    """Cast rays from one point.

    Args:
        world: the static world.
        actors: actors that may be hit.
        num_actors: number of all actors of the scene; the length of the ray counts.
        origin: [3] in scene metres, above the ground.
        directions: unit float32 [n, 3] in the scene frame.
        image: set if the rays are the pixels of an image, row by row; it enables interpolation.
        count_free: whether to fill `free_rays`; rays are then cast at hidden actors too.
    """
    count = len(directions)
    if image is None:
        static = _cast_static(world, origin, directions)
    else:
        static = _cast_static_image(world, origin, directions, (image.height, image.width))
    distance = static.distance
    what = np.where(static.hit, np.uint8(What.STATIC), np.uint8(What.NOTHING))
    rise = np.ascontiguousarray(directions[:, 2])
    down = np.minimum(rise, np.float32(-1e-5))
    plane = np.where(rise < -1e-5, np.float32(-origin[2]) / down, FAR)
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
    windows = None if image is None else image.candidates(actors)
    candidates = actors if windows is None else [posed for posed, _ in windows]
    gaps = _gaps(candidates, origin)
    for k in np.argsort(gaps, kind="stable"):
        posed, limit = candidates[k], -np.inf if count_free else gaps[k]
        if windows is None or image is None:
            chosen = _in_ball(posed, origin, directions)
            chosen = chosen[hits.distance[chosen] > limit]
        else:
            chosen = image.pixels_beyond(hits.distance, windows[k][1], limit)
        if len(chosen):
            _cast_actor(hits, posed, origin, directions, chosen)
    seen = np.bincount(hits.actor[hits.what == What.ACTOR], minlength=num_actors)
    hits.seen_rays += seen.astype(np.int32)
    return hits


def _in_ball(posed: PosedActor, origin: np.ndarray, directions: np.ndarray) -> np.ndarray:
    """Return the indices of the rays that hit the bounding sphere of an actor."""
    towards = posed.centre - origin
    gap = float(np.linalg.norm(towards))
    ratio = min(1.0, posed.radius / max(gap, 1e-9))
    limit = np.float32(np.sqrt(1 - ratio**2) if gap > posed.radius else -1.0)
    return np.flatnonzero(directions @ (towards / max(gap, 1e-9)).astype(np.float32) >= limit)


def _cast_actor(
    hits: Hits, posed: PosedActor, origin: np.ndarray, directions: np.ndarray, chosen: np.ndarray
) -> None:
    """Assign to an actor those `chosen` rays that hit it first."""
    model = posed.actor.model
    local = torch.from_numpy(np.take(directions, chosen, 0) @ posed.rotation.astype(np.float32))
    start = torch.from_numpy(((origin - posed.position) @ posed.rotation).astype(np.float32)[None])
    result = ray_cast(model.pyramid, start, local, model.corner, model.voxel, 0)
    hit = result.hit.numpy()[0, 0]
    hits.free_rays[posed.index] += int(np.count_nonzero(hit))
    distance = result.t_enter.numpy()[0, 0]
    nearer = np.flatnonzero(hit & (distance < hits.distance[chosen]))
    if len(nearer) == 0:
        return
    rows = chosen[nearer]
    hits.what[rows] = What.ACTOR
    hits.distance[rows] = distance[nearer]
    hits.actor[rows] = posed.index
    hits.voxel[rows] = np.take(result.voxel.numpy()[0, 0], nearer, 0)
    hits.face[rows] = result.face.numpy()[0, 0][nearer]
