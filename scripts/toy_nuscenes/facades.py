"""Building shading: rays that hit a building's voxels are moved to its true walls and roof, which carry windows."""

from __future__ import annotations

import numpy as np

from scripts.toy_nuscenes.light import Light
from scripts.toy_nuscenes.noise import hash01, noise_at
from scripts.toy_nuscenes.statics import SlotTable

_STYLE, _PITCH, _WIDTH, _TALL, _ROOF, _LIT, _TRIM, _BRICK = 0, 1, 2, 3, slice(4, 7), 7, slice(8, 11), 11
_HOUSE, _APARTMENT, _OFFICE, _SHOP, _WAREHOUSE = range(5)

Shaded = tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, np.ndarray]


def _to_walls(box: np.ndarray, origin: np.ndarray, directions: np.ndarray, points: np.ndarray,
              faces: np.ndarray) -> tuple[np.ndarray, np.ndarray]:  # fmt: skip
    """Hit points [n, 3] in the building's own frame, on its true surface, and the side [n] that was hit.

    Sides: 0 and 1 the ends (x = -/+ half length), 2 and 3 the long walls, 4 the top.
    """
    cos, sin = np.cos(box[:, 2]), np.sin(box[:, 2])
    ox, oy = np.float32(origin[0]) - box[:, 0], np.float32(origin[1]) - box[:, 1]
    o = np.stack([ox * cos + oy * sin, oy * cos - ox * sin], 1)
    d = np.stack([directions[:, 0] * cos + directions[:, 1] * sin, directions[:, 1] * cos - directions[:, 0] * sin], 1)
    half = box[:, 3:5]
    safe = np.where(np.abs(d) < 1e-6, np.float32(1e-6), d)
    enter = (-np.sign(safe) * half - o) / safe
    axis = np.argmax(enter, 1)
    rows = np.arange(len(box))
    t = enter[rows, axis]
    across = o[rows, 1 - axis] + t * d[rows, 1 - axis]
    z = np.float32(origin[2]) + t * directions[:, 2]
    true = (t > 0) & (np.abs(across) <= half[rows, 1 - axis] + 0.4) & (z > -0.2) & (z <= box[:, 5] + box[:, 6] + 0.3)
    px, py = points[:, 0] - box[:, 0], points[:, 1] - box[:, 1]
    local = np.stack([px * cos + py * sin, py * cos - px * sin, points[:, 2]], 1)
    snapped = np.stack([o[:, 0] + t * d[:, 0], o[:, 1] + t * d[:, 1], z], 1)
    wall = true & (np.linalg.norm(snapped - local, axis=1) < 0.9)
    local = np.where(wall[:, None], snapped, local).astype(np.float32)
    side = 2 * axis + (safe[rows, axis] < 0)
    roof = (local[:, 2] > box[:, 5] - 0.05) & ((box[:, 6] > 0) & (axis == 1) | ~wall) | ~wall & (faces == 5)
    return local, np.where(roof, 4, side)


def _wall_colour(style: np.ndarray, box: np.ndarray, colour: np.ndarray, u: np.ndarray, v: np.ndarray,
                 slots: np.ndarray, side: np.ndarray, size: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:  # fmt: skip
    """Albedo [n, 3], window mask [n] and lit-window mask [n] at wall coordinates u (along) and v (up), metres."""
    kind = style[:, _STYLE]
    storey = box[:, 5] / np.maximum(box[:, 7], 1)
    floor, column = np.floor(v / storey), np.floor(u / style[:, _PITCH])
    fu, fv = u / style[:, _PITCH] - column, v / storey - floor
    half_w, half_t = style[:, _WIDTH] / 2, style[:, _TALL] / 2
    ground_floor = floor < 1
    shop = ground_floor & ((kind == _SHOP) | (kind == _OFFICE))
    half_w = np.where(shop, 0.44, half_w)
    middle = np.where(shop, 0.48, np.where(kind == _WAREHOUSE, 0.78, 0.54))
    half_t = np.where(shop, 0.34, half_t)
    du, dv = np.abs(fu - 0.5) - half_w, np.abs(fv - middle) - half_t
    inside = (du < 0) & (dv < 0) & (v < box[:, 5] - 0.25)
    frame_u, frame_v = 0.07 / style[:, _PITCH], 0.07 / storey
    frame = (du < frame_u) & (dv < frame_v) & ~((du < -frame_u) & (dv < -frame_v)) & (v < box[:, 5] - 0.25)
    bar = inside & (np.abs(fu - 0.5) < 0.018) & (kind != _WAREHOUSE)
    chance = hash01(slots, column, floor, side)
    door = ground_floor & (chance > 0.85) & (np.abs(fu - 0.5) < 0.2) & (fv < 0.72) & ~shop
    gate = ground_floor & (kind == _WAREHOUSE) & (np.mod(column, 3) == 1) & (fv < 0.75) & (np.abs(fu - 0.5) < 0.36)
    noise = noise_at(51, 2.5, u + slots * 3.1, v, 0.09)
    out = colour * (1 + 0.05 * noise)[:, None]
    row = np.floor(v / 0.22)
    joint = (np.mod(v, 0.22) < 0.05) | (np.mod(u + 0.3 * np.mod(row, 2), 0.6) < 0.05)
    fade = np.clip(1.3 - size / 0.06, 0, 1) * style[:, _BRICK]
    out *= (1 + fade * (hash01(row, np.floor((u + 0.3 * np.mod(row, 2)) / 0.6)) - 0.5) * 1.2 - fade * joint * 1.3)[:, None]
    ridge = (kind == _WAREHOUSE) & (np.mod(u, 0.5) < 0.16)
    out *= np.where(ridge, 0.85, 1.0)[:, None]
    band = (np.mod(v, storey) < 0.16) & ((kind == _APARTMENT) | (kind == _SHOP)) & (floor > 0)
    trim = style[:, _TRIM]
    out = np.where((frame | band | bar)[:, None], trim, out)
    out = np.where((v > box[:, 5] - 0.3)[:, None], 0.6 * trim + 0.4 * colour, out)
    out *= np.where(v < 0.5, 0.75, 1.0)[:, None]
    sign = shop & (fv > 0.86) & (kind == _SHOP)
    tint = np.stack([hash01(slots, side, np.full_like(slots, k)) for k in range(3)], 1) * 0.6 + 0.03
    out = np.where(sign[:, None], tint, out)
    out = np.where((door | gate)[:, None], trim * 0.45 + tint * 0.25 * (1 - 0.3 * (np.mod(v, 0.4) < 0.08))[:, None], out)
    window = inside & ~frame & ~bar & ~door & ~gate
    lit = window & (hash01(slots, column, floor, side + 7) < style[:, _LIT])
    glass = np.float32([0.05, 0.065, 0.08]) * (0.7 + 0.9 * chance)[:, None]
    curtain = window & (chance < 0.25) & (fv > middle + half_t - 0.2) & (kind != _OFFICE)
    out = np.where(window[:, None], glass, out)
    out = np.where(curtain[:, None], np.float32([0.5, 0.48, 0.43]), out)
    return out.astype(np.float32), window & ~curtain, lit


def _roof_colour(style: np.ndarray, box: np.ndarray, local: np.ndarray) -> np.ndarray:
    course = np.mod(np.abs(local[:, 1]) * 1.2 + local[:, 2], 0.35) < 0.07
    noise = noise_at(52, 2.0, local[:, 0], local[:, 1], 0.1)
    pitched = box[:, 6] > 0
    tiles = style[:, _ROOF] * (1 + 0.12 * noise - 0.25 * course)[:, None]
    return np.where(pitched[:, None], tiles, np.float32([0.22, 0.22, 0.22]) * (1 + 0.1 * noise)[:, None])


def shade_building(table: SlotTable, slots: np.ndarray, origin: np.ndarray, directions: np.ndarray,
                   points: np.ndarray, faces: np.ndarray, size: np.ndarray, light: Light) -> Shaded:  # fmt: skip
    """Surface of buildings at ray hits.

    Args:
        table: the slots of the static world.
        slots: uint8 [n]. origin: [3]. directions, points: [n, 3] in the scene frame. faces: int8 [n], voxel faces.
        size: [n], width of a pixel's footprint at the hit, metres.
        light: for the sky in the windows.

    Returns:
        points [n, 3], normals [n, 3], albedo [n, 3], open sky [n] and glow [n, 3], see `shading.Surface`.
    """
    box, style = table.box[slots], table.style[slots]
    slots = slots.astype(np.int32)
    local, side = _to_walls(box, origin, directions, points, faces)
    long_wall = side >= 2
    u = np.where(long_wall, local[:, 0], local[:, 1]) + np.where(long_wall, box[:, 3], box[:, 4])
    albedo, window, lit = _wall_colour(style, box, table.colour[slots], u, local[:, 2], slots, side, size)
    roof = side == 4
    albedo = np.where(roof[:, None], _roof_colour(style, box, local), albedo)
    window, lit = window & ~roof, lit & ~roof
    flat = np.float32([[-1, 0, 0], [1, 0, 0], [0, -1, 0], [0, 1, 0], [0, 0, 1]])[side]
    tilt = roof & (box[:, 6] > 0)
    steep = box[:, 6] / box[:, 4]
    lean = np.stack([np.zeros_like(steep), np.sign(local[:, 1]) * steep, np.ones_like(steep)], 1)
    lean /= np.linalg.norm(lean, axis=1, keepdims=True)
    flat = np.where(tilt[:, None], lean, flat)
    cos, sin = np.cos(box[:, 2]), np.sin(box[:, 2])
    normals = np.stack([flat[:, 0] * cos - flat[:, 1] * sin, flat[:, 0] * sin + flat[:, 1] * cos, flat[:, 2]], 1)
    facing = np.clip(-(normals * directions).sum(1), 0, 1)
    mirror = directions + 2 * facing[:, None] * normals
    share = np.where(window, 0.10 + 0.75 * (1 - facing) ** 4, 0)
    height = np.clip(mirror[:, 2] * 3 + 0.25, 0, 1)[:, None]
    across = np.float32([0.20, 0.20, 0.19]) + (light.horizon * 0.9 - np.float32([0.20, 0.20, 0.19])) * height
    glow = share[:, None] * across + lit[:, None] * np.float32([0.34, 0.26, 0.13])
    open_sky = np.clip(0.45 + 0.08 * local[:, 2], 0.45, 0.95)
    shifted = points + 0.12 * normals
    return shifted.astype(np.float32), normals.astype(np.float32), albedo.astype(np.float32), open_sky.astype(np.float32), glow.astype(np.float32)
