"""Reflection of surfaces at ray hits. Arrays are float32; n is the number of rays."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from scripts.toy_nuscenes.actors import Actor
from scripts.toy_nuscenes.arrays import as_columns, f32, normalise, times
from scripts.toy_nuscenes.casting import Hits
from scripts.toy_nuscenes.ground import RESOLUTION_M, Ground
from scripts.toy_nuscenes.light import Light, squared
from scripts.toy_nuscenes.noise import hash01, noise_at, sample
from scripts.toy_nuscenes.rig import yaw_rotation
from scripts.toy_nuscenes.shadows import Shadows
from scripts.toy_nuscenes.shapes import Mat
from scripts.toy_nuscenes.statics import Kind, StaticWorld

FACE_NORMALS = f32([[-1, 0, 0], [1, 0, 0], [0, -1, 0], [0, 1, 0], [0, 0, -1], [0, 0, 1]])
_BOUNCE = f32([0.16, 0.15, 0.13])  # light reflected by the ground
_STREET = f32([0.14, 0.14, 0.13])  # reflection in paint below the horizon


@dataclass
class Surface:
    """Reflection of n surface points.

    points: [n, 3] metres. normals: unit [n, 3]. albedo: [n, 3]. open_sky: [n], share of sky light
    that arrives.
    glow: [n, 3] or None, emitted and mirrored light.
    bias: distance in metres from the surface at which shadows are looked up; the voxels that cast
        shadows protrude from the true surface.
    """

    points: np.ndarray
    normals: np.ndarray
    albedo: np.ndarray
    open_sky: np.ndarray
    glow: np.ndarray | None = None
    bias: float = 0.0


def shade_ground(
    ground: Ground,
    shadows: Shadows,
    points: np.ndarray,
    distance: np.ndarray,
    slope: np.ndarray,
    pixel: float,
) -> Surface:
    """Return the painted ground, filtered by the size of the pixel's footprint.

    Args:
        ground: the painted ground.
        shadows: shadows with the contact darkening.
        points: [n, 3] hit points.
        distance: [n], metres from the camera.
        slope: [n], sine of the angle between ray and ground.
        pixel: angle of a pixel, radians.
    """
    footprint = distance * pixel / np.sqrt(np.maximum(slope, 0.03))
    column, row = ground.canvas.cells(points)
    level = np.clip(
        np.round(np.log2(np.maximum(footprint / RESOLUTION_M, 1.0))), 0, len(ground.mips) - 1
    ).astype(np.int8)
    albedo = np.empty((len(points), 3), np.float32)
    for k, image in enumerate(ground.mips):
        rows = np.flatnonzero(level == k)
        if len(rows):
            scale = np.float32(0.5**k)
            albedo[rows] = sample(image, column[rows] * scale, row[rows] * scale)
    near = np.flatnonzero(footprint < 0.12)
    fade = np.clip(1.4 - footprint[near] / 0.09, 0, 1)
    grain = (
        noise_at(11, 0.8, points[near, 0], points[near, 1], 0.02) * 0.09
        + noise_at(12, 3.0, points[near, 0], points[near, 1], 0.03) * 0.05
    )
    albedo[near] = np.take(albedo, near, 0) * as_columns(1 + grain * fade)
    open_sky = sample(shadows.open_sky, *shadows.canvas.cells(points))
    normals = np.zeros((len(points), 3), np.float32)
    normals[:, 2] = 1
    return Surface(points, normals, albedo, open_sky)


def shade_canopy(
    world: StaticWorld,
    slots: np.ndarray,
    points: np.ndarray,
    faces: np.ndarray,
    distance: np.ndarray,
) -> Surface:
    """Shade foliage: the perturbed normal of an ellipsoid, with dark gaps between the leaves."""
    box = np.take(world.slots.box, slots, 0)
    relative = (points - box[:, :3]) / np.maximum(box[:, 3:6], 0.1)
    radius = np.sqrt(np.einsum("ij,ij->i", relative, relative))
    x, y, z = points.T
    coarse = noise_at(21, 2.2, x + 0.6 * z, y - 0.8 * z, 0.12)
    fine = _leaves(points, faces, 0.09) - np.float32(0.5)
    fade = np.clip(1.3 - distance / 45.0, 0.25, 1)
    normals = relative * as_columns(1 / np.maximum(radius, np.float32(0.2)))
    normals += np.take(np.float32(0.35) * FACE_NORMALS, faces, 0)
    normals += times(coarse, f32([0.25, -0.25, 0.125]))
    normals += as_columns(np.float32(0.5) * fine * fade)
    normalise(normals)
    depth = np.clip(radius * 0.9 + 0.12 * coarse, 0.25, 1.05)
    tone = 1 + 0.2 * coarse + fine * fade * 0.9
    albedo = np.take(world.slots.colour, slots, 0) * as_columns(np.clip(tone, 0.25, 2.0))
    albedo[:, 0] *= 1 + 0.12 * coarse
    open_sky = np.clip(depth * (0.62 + 0.38 * relative[:, 2]), 0.18, 1.0)
    return Surface(points, normals, albedo, open_sky, bias=0.7)


def _leaves(points: np.ndarray, faces: np.ndarray, size: float) -> np.ndarray:
    """Return random brightness [n] in [0, 1) of the `size`-metre cubes that contain the points.

    The points are moved inwards by a centimetre, since a face may be on the border of two cubes.
    """
    cells = points - np.take(np.float32(0.01) * FACE_NORMALS, faces, 0)
    x, y, z = np.floor(cells.T * np.float32(1 / size)).astype(np.int32)
    return hash01(x, y, z)


def shade_plain(
    world: StaticWorld, kind: Kind, slots: np.ndarray, points: np.ndarray, faces: np.ndarray
) -> Surface:
    """Shade walls, fences, poles, trunks and hedges: flat faces with dirt, boards or leaves."""
    normals = np.take(FACE_NORMALS, faces, 0)
    x, y, z = points.T
    along = np.where(faces < 2, y, x)
    dirt = noise_at(31, 3.0, along, z + np.float32(0.37) * (x + y), 0.06)
    tone = 1 + np.float32(0.08) * dirt
    if kind == Kind.HEDGE:
        tone = np.float32(0.5) + _leaves(points, faces, 0.08) + np.float32(0.15) * dirt
    elif kind == Kind.STRIPES:
        tone *= np.where(np.mod(along, np.float32(0.2)) < 0.05, np.float32(0.55), np.float32(1.0))
    elif kind == Kind.BARK:
        tone = 1 + np.float32(0.25) * noise_at(32, 1.5, x + y, z * np.float32(0.3), 0.02)
    albedo = np.take(world.slots.colour, slots, 0) * as_columns(np.clip(tone, 0.2, 2.0))
    open_sky = np.clip(np.float32(0.55) + z * np.float32(0.3), 0.5, 1.0)
    return Surface(points, normals, albedo, open_sky, bias=0.3)


def shade_actors(
    actors: list[Actor],
    yaws: dict[int, float],
    hits: Hits,
    rows: np.ndarray,
    points: np.ndarray,
    directions: np.ndarray,
    light: Light,
) -> Surface:
    """Shade vehicles, people and objects: voxel materials, smooth normals, mirrored sky and sun.

    `rows` are the indices of the hits, sorted by actor; points and directions [n, 3] match them.
    """
    which = hits.actor[rows]
    ends = [*np.flatnonzero(np.diff(which)) + 1, len(rows)]
    albedo = np.empty((len(rows), 3), np.float32)
    normals = np.empty((len(rows), 3), np.float32)
    gloss = np.zeros(len(rows), np.float32)
    mats = np.zeros(len(rows), np.uint8)
    start = 0
    for end in ends:
        index = int(which[start])
        actor, part = actors[index], slice(start, end)
        x, y, z = np.take(hits.voxel, rows[part], 0).T
        cell = (x * actor.model.grid.shape[1] + y) * actor.model.grid.shape[2] + z
        mats[part] = mat = actor.model.grid.reshape(-1)[cell]
        albedo[part] = np.take(actor.palette, mat, 0)
        shine = np.zeros(len(Mat), np.float32)
        shine[[Mat.PAINT, Mat.GLASS, Mat.RIM]] = actor.gloss, 1.0, 0.4
        gloss[part] = shine[mat]
        local = np.float32(0.75) * np.take(actor.model.normals.reshape(-1, 3), cell, 0)
        local += np.take(np.float32(0.25) * FACE_NORMALS, np.maximum(hits.face[rows[part]], 0), 0)
        normals[part] = local @ yaw_rotation(yaws[index]).T.astype(np.float32)
        start = end
    normalise(normals)
    cloth = (mats == Mat.TOP) | (mats == Mat.LEGS)
    fold = noise_at(41, 1.0, points[:, 0] + points[:, 1], points[:, 2], 0.04)
    albedo *= as_columns(1 + fold * np.where(cloth, np.float32(0.12), np.float32(0.03)))
    low = np.clip(np.float32(0.35) + points[:, 2] * np.float32(0.55), 0.35, 1.0)
    glow = _mirrored(normals, directions, gloss, light) * as_columns(low)
    glow[mats == Mat.TAILLIGHT] += f32([0.25, 0.01, 0.01])
    glow[mats == Mat.HEADLIGHT] += f32([0.25, 0.25, 0.22])
    return Surface(points, normals, albedo, low, glow, bias=0.3)


def _mirrored(
    normals: np.ndarray, directions: np.ndarray, gloss: np.ndarray, light: Light
) -> np.ndarray:
    glow = np.zeros((len(normals), 3), np.float32)
    rows = np.flatnonzero(gloss > 0)
    if len(rows) == 0:
        return glow
    normal, ray = np.take(normals, rows, 0), np.take(directions, rows, 0)
    cos = np.clip(-np.einsum("ij,ij->i", normal, ray), 0, 1)
    mirror = ray + as_columns(2 * cos) * normal
    grazing = 1 - cos
    shine = gloss[rows]
    share = shine * (np.float32(0.045) + np.float32(0.7) * squared(grazing, 2) * grazing)
    street = (mirror[:, 2] < 0).astype(np.float32)
    blend = np.sqrt(np.clip(mirror[:, 2], 0, 1))
    spot = squared(np.clip(mirror @ light.to_sun.astype(np.float32), 0, 1), 6)
    parts = np.stack([share * street, share * (1 - street - blend), share * blend, shine * spot])
    glow[rows] = parts.T @ np.stack([_STREET, light.horizon, light.zenith, light.sun])
    return glow
