"""Building shading: ray hits on a building's voxels are moved to its true walls and roof."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from scripts.toy_nuscenes.arrays import as_columns, f32, times
from scripts.toy_nuscenes.light import Light, squared
from scripts.toy_nuscenes.noise import hash01, noise_at
from scripts.toy_nuscenes.statics import SlotTable

_HOUSE, _APARTMENT, _OFFICE, _SHOP, _WAREHOUSE = range(5)
_GLASS = f32([0.05, 0.065, 0.08])
_CURTAIN = f32([0.5, 0.48, 0.43])
_STREET = f32([0.20, 0.20, 0.19])  # reflection in windows below the horizon
_LAMP = f32([0.34, 0.26, 0.13])
_SIDE_NORMALS = f32([[-1, 0, 0], [1, 0, 0], [0, -1, 0], [0, 1, 0], [0, 0, 1]])


@dataclass(frozen=True)
class Building:
    """Shape and appearance of a building, read from its slot (see `SlotTable`); in metres."""

    slot: int
    x: float
    y: float
    yaw: float
    half_length: float
    half_width: float
    eaves: float
    rise: float
    storey: float
    kind: int
    pitch: float  # distance between windows
    window_width: float  # as a share of the pitch
    window_height: float  # as a share of the storey
    roof: np.ndarray
    lit: float  # share of windows with light
    trim: np.ndarray
    brick: float  # strength of the brick pattern
    colour: np.ndarray

    @classmethod
    def of_slot(cls, table: SlotTable, slot: int) -> Building:
        """Read the building of a slot."""
        x, y, yaw, length, width, eaves, rise, storeys = (float(v) for v in table.box[slot])
        style = table.style[slot]
        return cls(
            slot,
            x,
            y,
            yaw,
            length,
            width,
            eaves,
            rise,
            eaves / max(storeys, 1.0),
            int(style[0]),
            float(style[1]),
            float(style[2]),
            float(style[3]),
            style[4:7],
            float(style[7]),
            style[8:11],
            float(style[11]),
            table.colour[slot],
        )


def _to_walls(
    b: Building, origin: np.ndarray, directions: np.ndarray, points: np.ndarray, top: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Move hits to the building's true surface.

    Returns:
        Points [3, n] in the building's own frame, and the side uint8 [n] that was hit.

    Sides: 0 and 1 the ends (x = -/+ half length), 2 and 3 the long walls, 4 the roof.
    """
    cos, sin = np.float32(np.cos(b.yaw)), np.float32(np.sin(b.yaw))
    ox, oy = origin[0] - b.x, origin[1] - b.y
    ox, oy = np.float32(ox * cos + oy * sin), np.float32(oy * cos - ox * sin)
    dx = directions[:, 0] * cos + directions[:, 1] * sin
    dy = directions[:, 1] * cos - directions[:, 0] * sin
    tiny = np.float32(1e-6)
    dx, dy = np.where(np.abs(dx) < tiny, tiny, dx), np.where(np.abs(dy) < tiny, tiny, dy)
    tx = (-np.sign(dx) * np.float32(b.half_length) - ox) / dx
    ty = (-np.sign(dy) * np.float32(b.half_width) - oy) / dy
    ends = tx > ty
    t = np.maximum(tx, ty)
    local = np.empty((3, len(points)), np.float32)
    px, py = points[:, 0] - np.float32(b.x), points[:, 1] - np.float32(b.y)
    local[0], local[1], local[2] = px * cos + py * sin, py * cos - px * sin, points[:, 2]
    snapped = np.stack([ox + t * dx, oy + t * dy, np.float32(origin[2]) + t * directions[:, 2]])
    gap = snapped - local
    wall = (t > 0) & (np.einsum("ij,ij->j", gap, gap) < 0.8) & (snapped[2] < b.eaves + b.rise + 0.3)
    np.copyto(local, snapped, where=wall)
    side = np.where(ends, (dx < 0).astype(np.uint8), 2 + (dy < 0).astype(np.uint8)).astype(np.uint8)
    roof = (~wall & top) | ((local[2] > b.eaves - 0.05) & (~wall | (~ends & (b.rise > 0))))
    side[roof] = 4
    return local, side


@dataclass
class _Wall:
    """Colours [n, 3] of wall points, and bool [n] masks of glass and of lit glass."""

    albedo: np.ndarray
    glass: np.ndarray
    lit: np.ndarray


def _window_shape(b: Building, first: np.ndarray) -> tuple[np.ndarray | float, ...]:
    """Return half width, centre height, half height of windows, relative to pitch and storey."""
    half_w, half_t, middle = (
        b.window_width / 2,
        b.window_height / 2,
        0.78 if b.kind == _WAREHOUSE else 0.54,
    )
    if b.kind in (_SHOP, _OFFICE):  # shop windows on the ground floor
        pick = lambda shop, above: np.where(first, np.float32(shop), np.float32(above))  # noqa: E731
        return pick(0.44, half_w), pick(0.48, middle), pick(0.34, half_t)
    return half_w, middle, half_t


def _shade_wall(
    b: Building, u: np.ndarray, v: np.ndarray, side: np.ndarray, size: np.ndarray
) -> _Wall:
    """Return a wall at coordinates u (along) and v (up) in metres.

    `size` is the width of a pixel there.
    """
    storey, pitch = np.float32(b.storey), np.float32(b.pitch)
    floor, column = np.floor(v / storey), np.floor(u / pitch)
    fu, fv = np.abs(u / pitch - column - np.float32(0.5)), v / storey - floor
    first = floor < 1
    half_w, middle, half_t = _window_shape(b, first)
    du, dv = fu - half_w, np.abs(fv - middle) - half_t
    below = v < b.eaves - 0.25
    frame_u, frame_v = 0.07 / b.pitch, 0.07 / b.storey
    inside = (du < 0) & (dv < 0) & below
    core = (du < -frame_u) & (dv < -frame_v)
    frame = (du < frame_u) & (dv < frame_v) & ~core & below
    chance = hash01(np.array([b.slot]), column, floor, side)
    tone = 1 + np.float32(0.05) * noise_at(51, 2.5, u + np.float32(b.slot * 3.1), v, 0.09)
    if b.brick > 0 and float(size.min()) < 0.08:
        tone = tone + _bricks(u, v) * (np.clip(1.3 - size / 0.06, 0, 1) * b.brick)
    if b.kind == _WAREHOUSE:
        tone = tone * np.where(np.mod(u, 0.5) < 0.16, np.float32(0.85), np.float32(1))
    albedo = times(tone, b.colour)
    trim = frame
    if b.kind != _WAREHOUSE:
        trim = trim | (inside & (fu < 0.018))
    if b.kind in (_APARTMENT, _SHOP):
        trim = trim | ((fv * storey < 0.16) & ~first)
    albedo[trim] = b.trim
    albedo[~below] = 0.6 * b.trim + 0.4 * b.colour
    albedo[v < 0.5] *= np.float32(0.75)
    door = _paint_doors(b, albedo, first, column, fu, fv, v, chance)
    window = inside & ~trim & ~door
    curtain = (
        window & (chance < 0.25) & (fv > middle + half_t - 0.2)
        if b.kind != _OFFICE
        else np.zeros_like(window)
    )
    albedo[window] = times(np.float32(0.7) + np.float32(0.9) * chance[window], _GLASS)
    albedo[curtain] = _CURTAIN
    rest = chance * 17
    rest -= np.floor(rest)
    lit = window & (rest < b.lit)
    return _Wall(albedo, window & ~curtain, lit)


def _paint_doors(
    b: Building,
    albedo: np.ndarray,
    first: np.ndarray,
    column: np.ndarray,
    fu: np.ndarray,
    fv: np.ndarray,
    v: np.ndarray,
    chance: np.ndarray,
) -> np.ndarray:
    """Paint doors, gates and shop signs on the ground floor; return the mask of the doors."""
    tint = hash01(np.full(3, b.slot), np.arange(3)) * np.float32(0.6) + np.float32(0.03)
    if b.kind == _SHOP:
        albedo[first & (fv > 0.86)] = tint
        return np.zeros_like(first)
    if b.kind == _WAREHOUSE:
        door = first & (np.mod(column, 3) == 1) & (fv < 0.75) & (fu < 0.36)
    else:
        door = first & (chance > 0.85) & (fu < 0.2) & (fv < 0.72) & (b.kind != _OFFICE)
    board = 1 - np.float32(0.3) * (np.mod(v[door], 0.4) < 0.08)
    albedo[door] = b.trim * np.float32(0.45) + board[:, None] * (tint * np.float32(0.25))
    return door


def _bricks(u: np.ndarray, v: np.ndarray) -> np.ndarray:
    row = np.floor(v / np.float32(0.22))
    shifted = u + np.float32(0.3) * np.mod(row, 2)
    joint = (np.mod(v, np.float32(0.22)) < 0.05) | (np.mod(shifted, np.float32(0.6)) < 0.05)
    return (hash01(row, np.floor(shifted / np.float32(0.6))) - np.float32(0.5)) * np.float32(
        1.2
    ) - np.float32(1.3) * joint


def _shade_roof(b: Building, local: np.ndarray) -> np.ndarray:
    noise = noise_at(52, 2.0, local[0], local[1], 0.1)
    if b.rise == 0:
        return np.float32(0.22) * as_columns(1 + np.float32(0.1) * noise)
    course = np.mod(np.abs(local[1]) * np.float32(1.2) + local[2], np.float32(0.35)) < 0.07
    return times(1 + np.float32(0.12) * noise - np.float32(0.25) * course, b.roof)


def _normals(b: Building, local: np.ndarray, side: np.ndarray) -> np.ndarray:
    """Return unit normals [n, 3] in the scene frame."""
    flat = np.take(_SIDE_NORMALS, side, 0)
    if b.rise > 0:
        roof = np.flatnonzero(side == 4)
        steep = b.rise / b.half_width
        length = float(np.hypot(1, steep))
        flat[roof, 1] = np.sign(local[1, roof]) * np.float32(steep / length)
        flat[roof, 2] = np.float32(1 / length)
    cos, sin = np.cos(b.yaw), np.sin(b.yaw)
    return flat @ f32([[cos, sin, 0], [-sin, cos, 0], [0, 0, 1]])


def shade_building(
    b: Building,
    origin: np.ndarray,
    directions: np.ndarray,
    points: np.ndarray,
    faces: np.ndarray,
    size: np.ndarray,
    light: Light,
) -> tuple[np.ndarray, ...]:
    """Return the surface of one building at ray hits.

    Args:
        b: the building.
        origin: [3] of the rays.
        directions: unit float32 [n, 3] in the scene frame.
        points: float32 [n, 3] on the voxels, in the scene frame.
        faces: int8 [n], voxel faces.
        size: float32 [n], width of a pixel's footprint at the hit, metres.
        light: light of the scene, for the sky in the windows.

    Returns:
        points [n, 3], normals [n, 3], albedo [n, 3], open sky [n] and glow [n, 3], see
        `shading.Surface`.
    """
    local, side = _to_walls(b, origin, directions, points, faces == 5)
    long_wall = side >= 2
    u = np.where(
        long_wall, local[0] + np.float32(b.half_length), local[1] + np.float32(b.half_width)
    )
    wall = _shade_wall(b, u, local[2], side, size)
    roof = np.flatnonzero(side == 4)
    wall.albedo[roof] = _shade_roof(b, local[:, roof])
    wall.glass[roof] = wall.lit[roof] = False
    normals = _normals(b, local, side)
    glow = np.zeros_like(wall.albedo)
    glass = np.flatnonzero(wall.glass)
    facing = np.clip(-np.einsum("ij,ij->i", normals[glass], directions[glass]), 0, 1)
    mirror_z = directions[glass, 2] + 2 * facing * normals[glass, 2]
    height = np.clip(mirror_z * 3 + np.float32(0.25), 0, 1)
    share = np.float32(0.10) + np.float32(0.75) * squared(1 - facing, 2)
    parts = np.stack([share * (1 - height), share * height])
    glow[glass] = parts.T @ np.stack([_STREET, light.horizon * np.float32(0.9)])
    glow[wall.lit] += _LAMP
    open_sky = np.clip(np.float32(0.45) + np.float32(0.08) * local[2], 0.45, 0.95)
    return points, normals, wall.albedo, open_sky, glow
