"""Voxel models of things: cars, trucks, people, cones ... Frame of a model: x forward, y left, z up, origin on the
ground below the middle. Voxel values are `Mat` numbers, which shading turns into colours.
"""

from __future__ import annotations

from enum import IntEnum
from functools import lru_cache

import numpy as np
import torch
from scipy.ndimage import binary_erosion, gaussian_filter

from models.ops import OccupancyPyramid

Point = tuple[float, float]


class Mat(IntEnum):
    """Materials of model voxels. PAINT, PAINT2, TOP and LEGS take their colour from the instance."""

    EMPTY = 0
    PAINT = 1
    PAINT2 = 2
    TOP = 3
    LEGS = 4
    GLASS = 5
    TYRE = 6
    RIM = 7
    HEADLIGHT = 8
    TAILLIGHT = 9
    TRIM = 10
    METAL = 11
    PLATE = 12
    SKIN = 13
    HAIR = 14
    ORANGE = 15
    WHITE = 16
    RED = 17
    YELLOW = 18
    WOOD = 19
    TRACK = 20


class Model:
    """A voxel model.

    Attributes:
        size: length, width, height of its box in metres.
        voxel: voxel edge in metres.
        grid: uint8 [X, Y, Z] of `Mat`.
        normals: float32 [X, Y, Z, 3], smooth outward normals near the surface.
        surface: float32 [n, 3], centres of the voxels with an empty neighbour.
        pyramid: the grid prepared for ray casting.
    """

    def __init__(self, size: tuple[float, float, float], voxel: float) -> None:
        """Args: size: length, width, height in metres. voxel: edge in metres."""
        cells = [max(1, round(edge / voxel)) for edge in size]
        self.size = size
        self.voxel = tuple(edge / n for edge, n in zip(size, cells, strict=True))
        self.corner = (-size[0] / 2, -size[1] / 2, 0.0)
        self.grid = np.zeros(cells, np.uint8)
        x, y, z = (low + (np.arange(n) + 0.5) * v for low, n, v in zip(self.corner, cells, self.voxel, strict=True))
        self.x, self.y, self.z = x[:, None, None], y[None, :, None], z[None, None, :]

    def put(self, mat: Mat, mask: np.ndarray) -> None:
        """Fills the voxels of a mask that broadcasts to [X, Y, Z]."""
        self.grid[np.broadcast_to(mask, self.grid.shape)] = mat

    def box(self, mat: Mat, x: Point, y: Point, z: Point) -> None:
        """Fills a box given by its bounds along each axis."""
        inside = (self.x >= x[0]) & (self.x <= x[1]) & (self.y >= y[0]) & (self.y <= y[1])
        self.put(mat, inside & (self.z >= z[0]) & (self.z <= z[1]))

    def wheel(self, x: float, y: Point, radius: float, hub: float = 0.55) -> None:
        """A wheel across y at `x` that stands on the ground."""
        distance = np.hypot(self.x - x, self.z - radius)
        across = (self.y >= y[0]) & (self.y <= y[1])
        self.put(Mat.TYRE, (distance <= radius) & across)
        self.put(Mat.RIM, (distance <= radius * hub) & across)

    def ball(self, mat: Mat, centre: tuple[float, float, float], radii: tuple[float, float, float]) -> None:
        """Fills an ellipsoid."""
        r = sum(((a - c) / q) ** 2 for a, c, q in zip((self.x, self.y, self.z), centre, radii, strict=True))
        self.put(mat, r <= 1)

    def bar(self, mat: Mat, a: tuple[float, float, float], b: tuple[float, float, float], radius: float) -> None:
        """Fills a round bar from point `a` to point `b`."""
        p, q = np.array(a), np.array(b)
        d = q - p
        t = ((self.x - p[0]) * d[0] + (self.y - p[1]) * d[1] + (self.z - p[2]) * d[2]) / float(d @ d)
        t = np.clip(t, 0, 1)
        gap = (self.x - p[0] - t * d[0]) ** 2 + (self.y - p[1] - t * d[1]) ** 2 + (self.z - p[2] - t * d[2]) ** 2
        self.put(mat, gap <= radius**2)

    def finish(self) -> Model:
        """Works out normals, surface points and the ray casting masks once the grid is filled."""
        solid = self.grid > 0
        padded = np.pad(solid, 3).astype(np.float32)
        smooth = gaussian_filter(padded, 1.3)
        gradient = np.stack(np.gradient(smooth), -1)[3:-3, 3:-3, 3:-3]
        length = np.linalg.norm(gradient, axis=-1, keepdims=True)
        self.normals = (-gradient / np.maximum(length, 1e-6)).astype(np.float32)
        inner = binary_erosion(np.pad(solid, 1), iterations=1)[1:-1, 1:-1, 1:-1]
        cells = np.argwhere(solid & ~inner)
        self.surface = ((cells + 0.5) * self.voxel + self.corner).astype(np.float32)
        self.pyramid = OccupancyPyramid(torch.from_numpy(self.grid)[None], 0)
        return self


def _car(size: tuple[float, float, float], profile: list[Point], belt: float, kind: str) -> Model:
    """A car body below a roof line.

    Args:
        size: length, width, height.
        profile: roof line as (x share of the length from the rear, z share of the height).
        belt: height of the lower window edge as a share of the height.
        kind: 'saloon', 'van' or 'pickup'.
    """
    length, width, height = size
    m = Model(size, 0.06)
    share = (m.x + length / 2) / length
    top = np.interp(share, [p[0] for p in profile], [p[1] for p in profile]) * height
    belt_m = belt * height
    nose = np.clip((np.abs(m.x) - 0.40 * length) / (0.10 * length), 0, 1)
    half = width / 2 * (1 - 0.13 * nose**2) - np.maximum(m.z - belt_m, 0) * 0.30
    half = half - 0.05 * np.maximum(0.45 - m.z, 0)
    body = (np.abs(m.y) <= half) & (m.z <= top) & (m.z >= 0.20 + 0.12 * nose**2)
    m.put(Mat.PAINT, body)
    above = body & (m.z > belt_m + 0.04)
    frame = (m.z > top - 0.10) & (np.abs(m.y) > half - 0.12)
    roof_line = max(p[1] for p in profile) * height
    pillars = np.zeros_like(share, dtype=bool)
    for at in (0.40, 0.60):
        pillars = pillars | (np.abs(share - at) < 0.012)
    glass = above & (m.z < roof_line - 0.09) & ~pillars & ~frame
    if kind == 'van':
        glass &= share > 0.55
    if kind == 'pickup':
        glass &= share > 0.36
    m.put(Mat.GLASS, glass)
    _car_details(m, length, width, height)
    return m.finish()


def _car_details(m: Model, length: float, width: float, height: float) -> None:
    painted = m.grid == Mat.PAINT
    m.put(Mat.TRIM, painted & (m.z < 0.34))
    front, rear = m.x > length / 2 - 0.22, m.x < -length / 2 + 0.16
    outer = np.abs(m.y) > width * 0.27
    m.put(Mat.HEADLIGHT, painted & front & outer & (m.z > 0.56) & (m.z < 0.72))
    m.put(Mat.TAILLIGHT, painted & rear & outer & (m.z > 0.62) & (m.z < 0.86))
    m.put(Mat.TRIM, painted & front & ~outer & (m.z > 0.42) & (m.z < 0.62))
    m.put(Mat.PLATE, painted & (front | rear) & (np.abs(m.y) < 0.27) & (m.z > 0.40) & (m.z < 0.53))
    for x in (-0.02, 0.19, -0.22):
        m.put(Mat.TRIM, painted & (np.abs(m.x - x * length) < 0.03) & (np.abs(m.y) > width * 0.3) & (m.z > 0.4) & (m.z < height * 0.58))
    radius = 0.33
    for x in (-0.30 * length, 0.31 * length):
        arch = (np.hypot(m.x - x, m.z - radius) < radius + 0.07) & (np.abs(m.y) > width / 2 - 0.30)
        m.put(Mat.EMPTY, arch)
        for sign in (-1, 1):
            y = sorted((sign * (width / 2 - 0.26), sign * (width / 2 - 0.03)))
            m.wheel(x, (y[0], y[1]), radius)


@lru_cache(maxsize=1)
def cars() -> tuple[Model, ...]:
    """Saloon, hatchback, estate, off-roader, van and pickup."""
    saloon = [(0, 0.52), (0.02, 0.62), (0.16, 0.66), (0.32, 0.98), (0.50, 1.0), (0.57, 0.98), (0.74, 0.63), (0.96, 0.54), (1, 0.42)]
    hatch = [(0, 0.5), (0.03, 0.68), (0.12, 0.95), (0.3, 1.0), (0.55, 0.99), (0.74, 0.63), (0.95, 0.55), (1, 0.42)]
    estate = [(0, 0.5), (0.02, 0.66), (0.08, 0.96), (0.3, 1.0), (0.56, 0.99), (0.73, 0.62), (0.96, 0.53), (1, 0.42)]
    offroad = [(0, 0.5), (0.02, 0.7), (0.06, 0.97), (0.3, 1.0), (0.60, 0.99), (0.73, 0.64), (0.96, 0.58), (1, 0.45)]
    van = [(0, 0.6), (0.01, 0.98), (0.3, 1.0), (0.72, 0.98), (0.86, 0.58), (0.97, 0.48), (1, 0.35)]
    pickup = [(0, 0.52), (0.01, 0.56), (0.36, 0.56), (0.38, 0.97), (0.60, 0.99), (0.72, 0.62), (0.97, 0.58), (1, 0.45)]
    return (
        _car((4.6, 1.86, 1.46), saloon, 0.62, 'saloon'), _car((4.0, 1.78, 1.50), hatch, 0.62, 'saloon'),
        _car((4.75, 1.86, 1.50), estate, 0.62, 'saloon'), _car((4.65, 1.94, 1.76), offroad, 0.63, 'saloon'),
        _car((5.0, 2.0, 2.0), van, 0.58, 'van'), _car((5.4, 2.0, 1.85), pickup, 0.60, 'pickup'),
    )  # fmt: skip


def _axle(m: Model, x: float, width: float, radius: float, thick: float = 0.32) -> None:
    for sign in (-1, 1):
        y = sorted((sign * (width / 2 - thick), sign * (width / 2 - 0.02)))
        arch = (np.hypot(m.x - x, m.z - radius) < radius + 0.08) & (m.y > y[0] - 0.05) & (m.y < y[1] + 0.1)
        m.put(Mat.EMPTY, arch)
        m.wheel(x, (y[0], y[1]), radius)


@lru_cache(maxsize=1)
def buses() -> tuple[Model, ...]:
    """A city bus and a coach."""
    out = []
    for length, height, belt in ((11.2, 3.1, 1.25), (10.0, 3.3, 1.5)):
        m = Model((length, 2.7, height), 0.1)
        half = 1.35 - 0.12 * np.clip(m.z - height + 0.5, 0, 1)
        m.put(Mat.PAINT, (np.abs(m.y) <= half) & (m.z > 0.3))
        solid = m.grid > 0
        m.put(Mat.PAINT2, solid & (m.z > 0.75) & (m.z < 1.05))
        pane = np.mod(m.x + length / 2, 1.45) > 0.14
        m.put(Mat.GLASS, solid & (m.z > belt) & (m.z < height - 0.55) & pane)
        front, rear = m.x > length / 2 - 0.12, m.x < -length / 2 + 0.12
        m.put(Mat.GLASS, solid & front & (m.z > 1.0) & (m.z < height - 0.5) & (np.abs(m.y) < 1.2))
        m.put(Mat.ORANGE, solid & front & (m.z >= height - 0.5) & (m.z < height - 0.2) & (np.abs(m.y) < 0.9))
        m.put(Mat.HEADLIGHT, solid & front & (m.z < 0.9) & (m.z > 0.6) & (np.abs(m.y) > 0.8))
        m.put(Mat.TAILLIGHT, solid & rear & (m.z < 1.3) & (m.z > 0.7) & (np.abs(m.y) > 1.0))
        m.put(Mat.PAINT, solid & rear & (m.z > belt) & (np.abs(m.y) >= 1.0))
        for x in (0.36, 0.0):
            door = (np.abs(m.x - x * length) < 0.6) & (m.y < -1.15) & (m.z > 0.4) & (m.z < 2.5)
            m.put(Mat.GLASS, solid & door)
            m.put(Mat.TRIM, solid & door & (np.abs(np.abs(m.x - x * length) - 0.55) < 0.06))
        for x in (0.28, -0.27):
            _axle(m, x * length, 2.7, 0.48)
        out.append(m.finish())
    return tuple(out)


def _cab(m: Model, rear: float, front: float, width: float, height: float) -> None:
    slope = np.clip((m.z - 0.5 * height) * 0.16, 0, 0.4)
    cab = (m.x >= rear) & (m.x <= front - slope) & (np.abs(m.y) <= width / 2) & (m.z > 0.45) & (m.z < height)
    m.put(Mat.PAINT, cab)
    glass = cab & (m.z > 0.56 * height) & (m.z < 0.88 * height)
    m.put(Mat.GLASS, glass & (m.x > front - slope - 0.15) & (np.abs(m.y) < width / 2 - 0.12))
    m.put(Mat.GLASS, glass & (np.abs(m.y) > width / 2 - 0.15) & (m.x > rear + 0.5) & (m.x < front - 0.45))
    m.put(Mat.TRIM, cab & (m.x > front - 0.15) & (m.z < 0.5 * height) & (m.z > 0.34 * height) & (np.abs(m.y) < width * 0.33))
    m.put(Mat.HEADLIGHT, cab & (m.x > front - 0.15) & (m.z < 0.34 * height) & (np.abs(m.y) > width * 0.3))


@lru_cache(maxsize=1)
def trucks() -> tuple[Model, ...]:
    """A box truck, a flat-bed truck with a load and a tipper."""
    out = []
    for kind, length, height in (('box', 8.2, 3.3), ('flat', 7.6, 2.7), ('tipper', 7.4, 3.0)):
        width = 2.5
        m = Model((length, width, height), 0.1)
        front, back = length / 2, -length / 2
        m.box(Mat.TRIM, (back, front - 0.3), (-0.5, 0.5), (0.55, 0.95))
        _cab(m, front - 1.9, front, width, 2.6)
        bed = front - 2.1
        if kind == 'box':
            m.box(Mat.PAINT2, (back, bed), (-1.25, 1.25), (0.95, height))
            rear = (m.grid == Mat.PAINT2) & (m.x < back + 0.1)
            m.put(Mat.TRIM, rear & (np.abs(m.y) < 0.06))
        elif kind == 'flat':
            m.box(Mat.METAL, (back, bed), (-1.25, 1.25), (0.95, 1.15))
            m.box(Mat.WOOD, (back + 0.4, bed - 0.5), (-1.0, 1.0), (1.15, 1.9))
            m.box(Mat.METAL, (bed - 0.2, bed), (-1.25, 1.25), (1.15, 2.4))
        else:
            wall = (np.abs(m.y) > 1.1) | (m.x < back + 0.2) | (m.x > bed - 0.2)
            tub = (m.x >= back) & (m.x <= bed) & (m.z > 0.95) & (np.abs(m.y) <= 1.25)
            m.put(Mat.PAINT2, tub & (m.z < height - 0.3) & (wall | (m.z < 2.2)))
            m.put(Mat.TRACK, tub & ~wall & (m.z >= 2.0) & (m.z < 2.4))
        m.box(Mat.TAILLIGHT, (back, back + 0.1), (-1.2, -0.8), (0.75, 0.95))
        m.box(Mat.TAILLIGHT, (back, back + 0.1), (0.8, 1.2), (0.75, 0.95))
        for x in (front - 1.1, back + 1.3, back + 2.5):
            _axle(m, x, width, 0.5)
        out.append(m.finish())
    return tuple(out)


@lru_cache(maxsize=1)
def trailers() -> tuple[Model, ...]:
    """A container trailer and a curtain-sided one, both standing on their legs."""
    out = []
    for length, height, ribs in ((12.0, 3.8, 0.5), (9.5, 3.4, 1.6)):
        m = Model((length, 2.5, height), 0.1)
        m.box(Mat.PAINT2, (-length / 2, length / 2), (-1.25, 1.25), (1.15, height))
        groove = (m.grid == Mat.PAINT2) & (np.abs(m.y) > 1.15) & (np.mod(m.x, ribs) < 0.1)
        m.put(Mat.METAL, groove)
        m.put(Mat.METAL, (m.grid == Mat.PAINT2) & (m.x < -length / 2 + 0.1) & (np.mod(m.y, 0.62) < 0.1))
        m.box(Mat.TRIM, (-length / 2, length / 2), (-0.5, 0.5), (0.85, 1.15))
        for sign in (-0.8, 0.8):
            m.box(Mat.METAL, (length / 2 - 3.0, length / 2 - 2.8), (sign - 0.1, sign + 0.1), (0.0, 1.1))
        for x in (0.9, 2.1, 3.3):
            _axle(m, -length / 2 + x, 2.5, 0.5)
        out.append(m.finish())
    return tuple(out)


@lru_cache(maxsize=1)
def construction_vehicles() -> tuple[Model, ...]:
    """An excavator and a wheel loader."""
    m = Model((7.2, 2.8, 3.3), 0.1)
    for sign in (-1, 1):
        y = sorted((sign * 0.85, sign * 1.4))
        m.box(Mat.TRACK, (-2.9, 1.1), (y[0], y[1]), (0.0, 0.9))
    m.box(Mat.TRIM, (-2.2, 0.4), (-0.9, 0.9), (0.5, 1.1))
    m.box(Mat.YELLOW, (-3.5, 0.6), (-1.3, 1.3), (1.1, 2.0))
    m.box(Mat.TRIM, (-3.5, -3.3), (-1.2, 1.2), (1.2, 1.9))
    m.box(Mat.YELLOW, (-1.0, 0.7), (0.2, 1.3), (2.0, 3.1))
    m.box(Mat.GLASS, (-0.8, 0.5), (0.1, 1.4), (2.1, 2.9))
    m.box(Mat.GLASS, (0.55, 0.8), (0.3, 1.2), (1.6, 2.9))
    m.bar(Mat.YELLOW, (0.3, -0.3, 1.7), (1.9, -0.3, 3.0), 0.26)
    m.bar(Mat.YELLOW, (1.9, -0.3, 3.0), (3.2, -0.3, 1.0), 0.20)
    m.box(Mat.METAL, (2.7, 3.6), (-0.9, 0.3), (0.1, 0.9))
    loader = Model((6.8, 2.6, 3.2), 0.1)
    loader.box(Mat.YELLOW, (-3.3, -0.6), (-1.0, 1.0), (0.9, 2.0))
    loader.box(Mat.YELLOW, (-0.6, 1.4), (-0.6, 0.6), (0.8, 1.5))
    loader.box(Mat.YELLOW, (-1.6, 0.0), (-0.8, 0.8), (2.0, 3.2))
    loader.box(Mat.GLASS, (-1.7, 0.1), (-0.9, 0.9), (2.1, 2.9))
    loader.bar(Mat.YELLOW, (0.6, 0.5, 1.6), (2.6, 0.5, 0.8), 0.16)
    loader.bar(Mat.YELLOW, (0.6, -0.5, 1.6), (2.6, -0.5, 0.8), 0.16)
    loader.box(Mat.METAL, (2.4, 3.4), (-1.3, 1.3), (0.1, 1.1))
    for x in (-2.2, 1.0):
        for sign in (-1, 1):
            y = sorted((sign * 0.75, sign * 1.3))
            loader.wheel(x, (y[0], y[1]), 0.75, 0.45)
    return m.finish(), loader.finish()


def _rider(m: Model, seat: tuple[float, float, float], lean: float) -> None:
    x, y, z = seat
    shoulder = (x + lean, y, z + 0.52)
    m.bar(Mat.TOP, (x, y, z), shoulder, 0.17)
    m.ball(Mat.SKIN, (shoulder[0] + 0.08, y, z + 0.74), (0.10, 0.09, 0.12))
    m.ball(Mat.HAIR, (shoulder[0] + 0.05, y, z + 0.80), (0.13, 0.12, 0.10))
    for sign in (-1, 1):
        m.bar(Mat.LEGS, (x, y + sign * 0.10, z), (x + 0.35, y + sign * 0.13, z - 0.30), 0.085)
        m.bar(Mat.LEGS, (x + 0.35, y + sign * 0.13, z - 0.30), (x + 0.18, y + sign * 0.13, z - 0.62), 0.07)
        m.bar(Mat.TOP, (shoulder[0], y + sign * 0.17, shoulder[2]), (x + 0.55, y + sign * 0.22, z + 0.22), 0.06)


def _ring(m: Model, x: float, radius: float, thick: float, mat: Mat) -> None:
    distance = np.hypot(m.x - x, m.z - radius)
    m.put(mat, (np.abs(distance - radius + thick) <= thick) & (np.abs(m.y) < max(thick, 0.04)))


@lru_cache(maxsize=1)
def bicycles() -> tuple[Model, ...]:
    """A bicycle with a rider and one without."""
    out = []
    for rider in (True, False):
        m = Model((1.76, 0.62, 1.78 if rider else 1.08), 0.04)
        for x in (-0.53, 0.53):
            _ring(m, x, 0.34, 0.045, Mat.TYRE)
            m.bar(Mat.METAL, (x, -0.05, 0.34), (x, 0.05, 0.34), 0.06)
        corners = [(-0.53, 0, 0.34), (-0.12, 0, 0.34), (0.36, 0, 0.80), (-0.25, 0, 0.80), (-0.12, 0, 0.34)]
        for a, b in zip(corners[:-1], corners[1:], strict=True):
            m.bar(Mat.PAINT, a, b, 0.045)
        m.bar(Mat.PAINT, (-0.53, 0, 0.34), (-0.25, 0, 0.80), 0.04)
        m.bar(Mat.PAINT, (0.53, 0, 0.34), (0.34, 0, 0.98), 0.045)
        m.bar(Mat.METAL, (0.34, -0.28, 1.0), (0.34, 0.28, 1.0), 0.04)
        m.bar(Mat.TRIM, (-0.36, 0, 0.92), (-0.14, 0, 0.92), 0.06)
        if rider:
            _rider(m, (-0.2, 0.0, 0.94), 0.24)
        out.append(m.finish())
    return tuple(out)


@lru_cache(maxsize=1)
def motorcycles() -> tuple[Model, ...]:
    """A motorcycle with a rider and one without."""
    out = []
    for rider in (True, False):
        m = Model((2.16, 0.80, 1.62 if rider else 1.14), 0.05)
        for x in (-0.70, 0.72):
            distance = np.hypot(m.x - x, m.z - 0.33)
            m.put(Mat.TYRE, (distance <= 0.33) & (np.abs(m.y) < 0.09))
            m.put(Mat.RIM, (distance <= 0.2) & (np.abs(m.y) < 0.09))
        m.box(Mat.METAL, (-0.35, 0.35), (-0.16, 0.16), (0.25, 0.62))
        m.ball(Mat.PAINT, (0.16, 0, 0.76), (0.36, 0.20, 0.17))
        m.bar(Mat.TRIM, (-0.75, 0, 0.78), (-0.1, 0, 0.74), 0.13)
        m.bar(Mat.PAINT, (-0.9, 0, 0.72), (-0.6, 0, 0.76), 0.12)
        m.bar(Mat.METAL, (0.72, 0, 0.33), (0.48, 0, 0.95), 0.07)
        m.bar(Mat.METAL, (0.45, -0.36, 1.02), (0.45, 0.36, 1.02), 0.04)
        m.ball(Mat.HEADLIGHT, (0.62, 0, 0.86), (0.10, 0.11, 0.11))
        m.bar(Mat.METAL, (-0.8, -0.2, 0.33), (0.0, -0.2, 0.33), 0.06)
        if rider:
            _rider(m, (-0.25, 0.0, 0.82), 0.20)
        out.append(m.finish())
    return tuple(out)


@lru_cache(maxsize=1)
def pedestrians() -> tuple[Model, ...]:
    """Two walking adults, a standing one and a child."""
    out = []
    for height, stride, width in ((1.78, 0.30, 0.64), (1.66, 0.22, 0.60), (1.74, 0.05, 0.62), (1.22, 0.18, 0.46)):
        k = height / 1.78
        m = Model((0.72 * k, width, height), 0.05)
        hip, shoulder = 0.90 * k, 1.45 * k
        for sign in (-1, 1):
            foot = (sign * stride * k, sign * 0.10 * k, 0.05)
            m.bar(Mat.LEGS, (0, sign * 0.09 * k, hip), foot, 0.085 * k)
            m.bar(Mat.TRIM, foot, (foot[0] + 0.12 * k, foot[1], 0.05), 0.06)
            hand = (-sign * stride * 0.8 * k, sign * 0.26 * k, 0.85 * k)
            m.bar(Mat.TOP, (0, sign * 0.22 * k, shoulder - 0.05), hand, 0.065 * k)
            m.ball(Mat.SKIN, hand, (0.06, 0.06, 0.07))
        m.ball(Mat.TOP, (0, 0, (hip + shoulder) / 2), (0.15 * k, 0.22 * k, 0.36 * k))
        m.box(Mat.TOP, (-0.11 * k, 0.11 * k), (-0.19 * k, 0.19 * k), (hip - 0.05, shoulder))
        m.ball(Mat.SKIN, (0.01, 0, 1.63 * k), (0.10, 0.09, 0.13))
        m.ball(Mat.HAIR, (-0.02, 0, 1.69 * k), (0.11, 0.10, 0.10))
        out.append(m.finish())
    return tuple(out)


@lru_cache(maxsize=1)
def cones() -> tuple[Model, ...]:
    """A large and a small traffic cone."""
    out = []
    for height, base in ((0.95, 0.46), (0.72, 0.38)):
        m = Model((base, base, height), 0.04)
        radius = np.hypot(m.x, m.y)
        inside = radius <= 0.04 + (base * 0.40) * (1 - m.z / height)
        m.put(Mat.ORANGE, inside)
        m.put(Mat.WHITE, inside & (((m.z > 0.42 * height) & (m.z < 0.58 * height)) | ((m.z > 0.72 * height) & (m.z < 0.82 * height))))
        m.box(Mat.TRIM, (-base, base), (-base, base), (0.0, 0.05))
        out.append(m.finish())
    return tuple(out)


@lru_cache(maxsize=1)
def barriers() -> tuple[Model, ...]:
    """A plastic water-filled barrier and a fence board on feet, both red and white."""
    m = Model((0.52, 2.4, 1.0), 0.05)
    m.put(Mat.RED, np.abs(m.x) <= 0.26 - 0.17 * np.clip(m.z / 0.6, 0, 1) + 0 * m.y)
    m.put(Mat.WHITE, (m.grid > 0) & (np.mod(m.y + 1.2, 1.2) > 0.6))
    board = Model((0.48, 2.2, 1.05), 0.05)
    stripe = np.mod(board.y + board.z, 0.7) > 0.35
    for low, high in ((0.35, 0.6), (0.75, 1.02)):
        plank = (np.abs(board.x) < 0.07) & (board.z > low) & (board.z < high) & (np.abs(board.y) < 1.1)
        board.put(Mat.RED, plank)
        board.put(Mat.WHITE, plank & stripe)
    for y in (-0.85, 0.85):
        board.box(Mat.TRIM, (-0.24, 0.24), (y - 0.12, y + 0.12), (0.0, 0.12))
        board.box(Mat.METAL, (-0.06, 0.06), (y - 0.06, y + 0.06), (0.1, 1.0))
    return m.finish(), board.finish()


@lru_cache(maxsize=1)
def others() -> tuple[Model, ...]:
    """A wheeled bin, a pallet with boxes, a shopping trolley and a heap of debris."""
    waste = Model((1.3, 1.1, 1.25), 0.05)
    waste.put(Mat.PAINT, (np.abs(waste.y) < 0.42 + 0.1 * waste.z) & (np.abs(waste.x) < 0.65) & (waste.z > 0.15) & (waste.z < 1.1))
    waste.put(Mat.TRIM, (waste.z >= 1.1) & (np.abs(waste.y) < 0.55) & (np.abs(waste.x) < 0.65))
    for x in (-0.5, 0.5):
        for y in (-0.35, 0.35):
            waste.box(Mat.TYRE, (x - 0.08, x + 0.08), (y - 0.06, y + 0.06), (0.0, 0.16))
    pallet = Model((1.2, 1.0, 1.1), 0.05)
    pallet.box(Mat.WOOD, (-0.6, 0.6), (-0.5, 0.5), (0.0, 0.15))
    pallet.box(Mat.PAINT, (-0.55, 0.0), (-0.45, 0.45), (0.15, 0.75))
    pallet.box(Mat.PAINT2, (0.03, 0.55), (-0.45, 0.45), (0.15, 0.62))
    pallet.box(Mat.PAINT, (-0.3, 0.25), (-0.3, 0.3), (0.75, 1.1))
    trolley = Model((1.0, 0.6, 1.05), 0.05)
    cage = (np.abs(trolley.x) < 0.48) & (np.abs(trolley.y) < 0.3) & (trolley.z > 0.4) & (trolley.z < 0.95)
    core = (np.abs(trolley.x) < 0.42) & (np.abs(trolley.y) < 0.24) & (trolley.z > 0.46)
    trolley.put(Mat.METAL, cage & ~core)
    trolley.box(Mat.RED, (-0.5, -0.42), (-0.3, 0.3), (0.95, 1.05))
    for x in (-0.4, 0.4):
        for y in (-0.24, 0.24):
            trolley.box(Mat.TRIM, (x - 0.05, x + 0.05), (y - 0.05, y + 0.05), (0.0, 0.45))
    heap = Model((1.4, 1.2, 0.55), 0.05)
    heap.put(Mat.WOOD, heap.z < 0.5 * np.exp(-2.2 * (heap.x**2 + 1.3 * heap.y**2)) + 0.06 * np.sin(9 * heap.x) * np.cos(11 * heap.y))
    return waste.finish(), pallet.finish(), trolley.finish(), heap.finish()
