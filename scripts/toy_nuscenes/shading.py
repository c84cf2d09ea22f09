"""Turns ray hits into colours. All arrays are float32; n is the number of rays of one kind."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from scripts.toy_nuscenes.actors import Actor
from scripts.toy_nuscenes.casting import Hits, What
from scripts.toy_nuscenes.facades import shade_building
from scripts.toy_nuscenes.ground import RESOLUTION_M, Ground
from scripts.toy_nuscenes.light import Light, add_haze, add_skyline, sky_colour, sky_light
from scripts.toy_nuscenes.noise import hash01, noise_at, sample
from scripts.toy_nuscenes.rig import yaw_rotation
from scripts.toy_nuscenes.shadows import Shadows
from scripts.toy_nuscenes.shapes import Mat
from scripts.toy_nuscenes.statics import Kind, StaticWorld

FACE_NORMALS = np.float32([[-1, 0, 0], [1, 0, 0], [0, -1, 0], [0, 1, 0], [0, 0, -1], [0, 0, 1]])
_BOUNCE = np.float32([0.16, 0.15, 0.13])  # light that the ground throws back up


@dataclass
class Surface:
    """What n surface points reflect.

    points: [n, 3] metres. normals: unit [n, 3]. albedo: [n, 3]. open_sky: [n], share of sky light that arrives.
    glow: [n, 3] or None, light of its own and mirrored light.
    """

    points: np.ndarray
    normals: np.ndarray
    albedo: np.ndarray
    open_sky: np.ndarray
    glow: np.ndarray | None = None


def light_surface(surface: Surface, light: Light, shadows: Shadows, bias: float) -> np.ndarray:
    """Radiance [n, 3] of a surface under sun, sky and ground."""
    normals = surface.normals
    direct = np.maximum(normals @ light.to_sun.astype(np.float32), 0) * shadows.sunlit(surface.points, bias)
    upward = 0.5 + 0.5 * normals[:, 2]
    arriving = direct[:, None] * light.sun
    arriving += (upward * surface.open_sky)[:, None] * sky_light(light)
    arriving += ((1 - upward) * surface.open_sky)[:, None] * (_BOUNCE * (light.sun + light.ambient))
    colour = surface.albedo * arriving
    if surface.glow is not None:
        colour += surface.glow
    return colour


def shade_ground(ground: Ground, shadows: Shadows, points: np.ndarray, distance: np.ndarray,
                 slope: np.ndarray, pixel: float) -> Surface:  # fmt: skip
    """The painted ground, filtered by the size of the pixel's footprint.

    Args:
        points: [n, 3] hit points. distance: [n]. slope: [n], sine of the angle at which the ray comes in.
        pixel: angle that a pixel spans, radians.
    """
    footprint = distance * pixel / np.sqrt(np.maximum(slope, 0.03))
    cells = ground.canvas.pixels(points[:, :2]).astype(np.float32)
    level = np.clip(np.round(np.log2(np.maximum(footprint / RESOLUTION_M, 1.0))), 0, len(ground.mips) - 1).astype(np.int8)
    albedo = np.empty((len(points), 3), np.float32)
    for k, image in enumerate(ground.mips):
        rows = np.flatnonzero(level == k)
        if len(rows):
            scale = np.float32(0.5**k)
            albedo[rows] = sample(image, cells[rows, 0] * scale, cells[rows, 1] * scale)
    near = np.flatnonzero(footprint < 0.12)
    fade = np.clip(1.4 - footprint[near] / 0.09, 0, 1)
    grain = noise_at(11, 0.8, points[near, 0], points[near, 1], 0.02) * 0.09 + noise_at(12, 3.0, points[near, 0], points[near, 1], 0.03) * 0.05
    albedo[near] *= (1 + grain * fade)[:, None]
    sky_cells = shadows.canvas.pixels(points[:, :2]).astype(np.float32)
    open_sky = sample(shadows.open_sky, sky_cells[:, 0], sky_cells[:, 1])
    normals = np.zeros((len(points), 3), np.float32)
    normals[:, 2] = 1
    return Surface(points, normals, albedo, open_sky)


def shade_canopy(world: StaticWorld, slots: np.ndarray, points: np.ndarray, faces: np.ndarray,
                 distance: np.ndarray) -> Surface:  # fmt: skip
    """Foliage: the normal of an ellipsoid, ruffled, with dark gaps between the leaves."""
    box = world.slots.box[slots]
    relative = (points - box[:, :3]) / np.maximum(box[:, 3:6], 0.1)
    radius = np.linalg.norm(relative, axis=1)
    x, y, z = points.T
    coarse = noise_at(21, 2.2, x + 0.6 * z, y - 0.8 * z, 0.12)
    leaf = 0.09 if len(points) else 1.0
    cell = np.floor(points / np.float32(leaf)).astype(np.int32)
    fine = hash01(cell[:, 0], cell[:, 1], cell[:, 2]) - 0.5
    fade = np.clip(1.3 - distance / 45.0, 0.25, 1)
    normals = relative / np.maximum(radius, 0.2)[:, None] + 0.35 * FACE_NORMALS[faces]
    normals += (np.stack([coarse, -coarse, 0.5 * coarse], 1) * 0.25 + (fine * fade)[:, None] * 0.5).astype(np.float32)
    normals /= np.maximum(np.linalg.norm(normals, axis=1, keepdims=True), 1e-3)
    depth = np.clip(radius * 0.9 + 0.12 * coarse, 0.25, 1.05)
    tone = 1 + 0.2 * coarse + fine * fade * 0.9
    albedo = world.slots.colour[slots] * np.clip(tone, 0.25, 2.0)[:, None]
    albedo[:, 0] *= 1 + 0.12 * coarse
    open_sky = np.clip(depth * (0.62 + 0.38 * relative[:, 2]), 0.18, 1.0)
    return Surface(points, normals, albedo, open_sky)


def shade_plain(world: StaticWorld, slots: np.ndarray, points: np.ndarray, faces: np.ndarray) -> Surface:
    """Walls, fences, poles, trunks and hedges: flat faces with dirt, boards or leaves."""
    kind = world.slots.kind[slots]
    normals = FACE_NORMALS[faces]
    x, y, z = points.T
    along = np.where(np.abs(normals[:, 0]) > 0.5, y, x)
    dirt = noise_at(31, 3.0, along, z + 0.37 * (x + y), 0.06)
    cell = np.floor(points / np.float32(0.08)).astype(np.int32)
    leaf = hash01(cell[:, 0], cell[:, 1], cell[:, 2]) - 0.5
    tone = 1 + 0.08 * dirt
    hedge = kind == Kind.HEDGE
    tone = np.where(hedge, 1 + leaf * 1.0 + 0.15 * dirt, tone)
    tone = np.where(kind == Kind.STRIPES, tone * np.where(np.mod(along, 0.2) < 0.05, 0.55, 1.0), tone)
    tone = np.where(kind == Kind.BARK, 1 + 0.25 * noise_at(32, 1.5, (x + y), z * 0.3, 0.02), tone)
    albedo = world.slots.colour[slots] * np.clip(tone, 0.2, 2.0)[:, None]
    open_sky = np.clip(0.55 + z * 0.3, 0.5, 1.0)
    return Surface(points, normals, albedo.astype(np.float32), open_sky.astype(np.float32))


def shade_actors(actors: list[Actor], yaws: dict[int, float], hits: Hits, rows: np.ndarray, points: np.ndarray,
                 directions: np.ndarray, light: Light) -> Surface:  # fmt: skip
    """Vehicles, people and things: materials of their voxels, smooth normals, mirrored sky and sun."""
    albedo = np.empty((len(rows), 3), np.float32)
    normals = np.empty((len(rows), 3), np.float32)
    gloss = np.zeros(len(rows), np.float32)
    mats = np.zeros(len(rows), np.uint8)
    which = hits.actor[rows]
    for index in np.unique(which):
        mine = np.flatnonzero(which == index)
        actor = actors[index]
        voxel = tuple(hits.voxel[rows[mine]].T)
        mats[mine] = mat = actor.model.grid[voxel]
        albedo[mine] = actor.palette[mat]
        face = FACE_NORMALS[np.maximum(hits.face[rows[mine]], 0)]
        local = 0.75 * actor.model.normals[voxel] + 0.25 * face
        normals[mine] = local @ yaw_rotation(yaws[int(index)]).T.astype(np.float32)
        gloss[mine] = np.where(mat == Mat.PAINT, actor.gloss, np.where(mat == Mat.GLASS, 1.0, np.where(mat == Mat.RIM, 0.4, 0.0)))
    normals /= np.maximum(np.linalg.norm(normals, axis=1, keepdims=True), 1e-3)
    cloth = (mats == Mat.TOP) | (mats == Mat.LEGS)
    fold = noise_at(41, 1.0, points[:, 0] + points[:, 1], points[:, 2], 0.04)
    albedo *= np.where(cloth, 1 + 0.12 * fold, 1 + 0.03 * fold)[:, None]
    low = np.clip(0.35 + points[:, 2] * 0.55, 0.35, 1.0)
    glow = _mirrored(normals, directions, gloss, light) * np.clip(low, 0, 1)[:, None]
    glow[mats == Mat.TAILLIGHT] += np.float32([0.25, 0.01, 0.01])
    glow[mats == Mat.HEADLIGHT] += np.float32([0.25, 0.25, 0.22])
    return Surface(points, normals, albedo, low.astype(np.float32), glow)


def _mirrored(normals: np.ndarray, directions: np.ndarray, gloss: np.ndarray, light: Light) -> np.ndarray:
    glow = np.zeros((len(normals), 3), np.float32)
    rows = np.flatnonzero(gloss > 0)
    if len(rows) == 0:
        return glow
    normal, ray = normals[rows], directions[rows]
    cos = np.clip(-(normal * ray).sum(1), 0, 1)
    mirror = ray + 2 * cos[:, None] * normal
    share = gloss[rows] * (0.045 + 0.7 * (1 - cos) ** 5)
    up = np.clip(mirror[:, 2], 0, 1)[:, None]
    scene = np.where(mirror[:, 2:] > 0, light.horizon + (light.zenith - light.horizon) * np.sqrt(up), np.float32([0.14, 0.14, 0.13]))
    spot = np.clip(mirror @ light.to_sun.astype(np.float32), 0, 1) ** 90 * 2.2
    glow[rows] = share[:, None] * scene + (gloss[rows] * spot * 0.5)[:, None] * light.sun
    return glow


@dataclass
class Shader:
    """Shades the hits of rays from one point at one moment."""

    ground: Ground
    world: StaticWorld
    actors: list[Actor]
    light: Light

    def colours(self, hits: Hits, origin: np.ndarray, directions: np.ndarray, shadows: Shadows,
                yaws: dict[int, float], pixel: float) -> np.ndarray:  # fmt: skip
        """Radiance float32 [n, 3] seen along rays.

        Args:
            hits: what the rays hit.
            origin: [3] in scene metres.
            directions: unit float32 [n, 3].
            shadows: of this moment.
            yaws: heading of each actor in sight, by index.
            pixel: angle that a pixel spans, radians.
        """
        out = np.empty((len(directions), 3), np.float32)
        points = (directions * np.minimum(hits.distance, 1e5)[:, None] + origin.astype(np.float32)).astype(np.float32)
        kind = np.where(hits.what == What.STATIC, self.world.slots.kind[hits.slot], 255)
        surfaces: list[tuple[np.ndarray, Surface, float]] = []
        rows = np.flatnonzero(hits.what == What.GROUND)
        surfaces.append((rows, shade_ground(self.ground, shadows, points[rows], hits.distance[rows], -directions[rows, 2], pixel), 0.15))
        rows = np.flatnonzero(kind == Kind.CANOPY)
        faces = np.maximum(hits.face, 0)
        surfaces.append((rows, shade_canopy(self.world, hits.slot[rows], points[rows], faces[rows], hits.distance[rows]), 0.9))
        rows = np.flatnonzero(kind == Kind.BUILDING)
        building = shade_building(self.world.slots, hits.slot[rows], origin, directions[rows], points[rows], faces[rows],
                                  hits.distance[rows] * pixel, self.light)  # fmt: skip
        surfaces.append((rows, Surface(*building), 0.5))
        rows = np.flatnonzero((kind != 255) & (kind != Kind.CANOPY) & (kind != Kind.BUILDING))
        surfaces.append((rows, shade_plain(self.world, hits.slot[rows], points[rows], faces[rows]), 0.4))
        rows = np.flatnonzero(hits.what == What.ACTOR)
        surfaces.append((rows, shade_actors(self.actors, yaws, hits, rows, points[rows], directions[rows], self.light), 0.45))
        for rows, surface, bias in surfaces:
            if len(rows):
                colour = light_surface(surface, self.light, shadows, bias)
                add_haze(self.light, colour, hits.distance[rows])
                out[rows] = colour
        rows = np.flatnonzero(hits.what == What.NOTHING)
        sky = sky_colour(self.light, directions[rows])
        add_skyline(self.light, directions[rows], sky)
        out[rows] = sky
        return out
