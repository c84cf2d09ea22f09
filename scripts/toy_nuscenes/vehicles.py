"""Voxel models of large vehicles: cars, buses, trucks, trailers and construction vehicles."""

from __future__ import annotations

from functools import lru_cache

import numpy as np

from scripts.toy_nuscenes.shapes import Mat, Model, Point


def _car(size: tuple[float, float, float], profile: list[Point], belt: float, kind: str) -> Model:
    """Return a car body below a roof line.

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
    if kind == "van":
        glass &= share > 0.55
    if kind == "pickup":
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
        m.put(
            Mat.TRIM,
            painted
            & (np.abs(m.x - x * length) < 0.03)
            & (np.abs(m.y) > width * 0.3)
            & (m.z > 0.4)
            & (m.z < height * 0.58),
        )
    radius = 0.33
    for x in (-0.30 * length, 0.31 * length):
        arch = (np.hypot(m.x - x, m.z - radius) < radius + 0.07) & (np.abs(m.y) > width / 2 - 0.30)
        m.put(Mat.EMPTY, arch)
        for sign in (-1, 1):
            y = sorted((sign * (width / 2 - 0.26), sign * (width / 2 - 0.03)))
            m.wheel(x, (y[0], y[1]), radius)


@lru_cache(maxsize=1)
def cars() -> tuple[Model, ...]:
    """Return a saloon, hatchback, estate, off-roader, van and pickup."""
    saloon = [
        (0, 0.52),
        (0.02, 0.62),
        (0.16, 0.66),
        (0.32, 0.98),
        (0.50, 1.0),
        (0.57, 0.98),
        (0.74, 0.63),
        (0.96, 0.54),
        (1, 0.42),
    ]
    hatch = [
        (0, 0.5),
        (0.03, 0.68),
        (0.12, 0.95),
        (0.3, 1.0),
        (0.55, 0.99),
        (0.74, 0.63),
        (0.95, 0.55),
        (1, 0.42),
    ]
    estate = [
        (0, 0.5),
        (0.02, 0.66),
        (0.08, 0.96),
        (0.3, 1.0),
        (0.56, 0.99),
        (0.73, 0.62),
        (0.96, 0.53),
        (1, 0.42),
    ]
    offroad = [
        (0, 0.5),
        (0.02, 0.7),
        (0.06, 0.97),
        (0.3, 1.0),
        (0.60, 0.99),
        (0.73, 0.64),
        (0.96, 0.58),
        (1, 0.45),
    ]
    van = [(0, 0.6), (0.01, 0.98), (0.3, 1.0), (0.72, 0.98), (0.86, 0.58), (0.97, 0.48), (1, 0.35)]
    pickup = [
        (0, 0.52),
        (0.01, 0.56),
        (0.36, 0.56),
        (0.38, 0.97),
        (0.60, 0.99),
        (0.72, 0.62),
        (0.97, 0.58),
        (1, 0.45),
    ]
    return (
        _car((4.6, 1.86, 1.46), saloon, 0.62, "saloon"),
        _car((4.0, 1.78, 1.50), hatch, 0.62, "saloon"),
        _car((4.75, 1.86, 1.50), estate, 0.62, "saloon"),
        _car((4.65, 1.94, 1.76), offroad, 0.63, "saloon"),
        _car((5.0, 2.0, 2.0), van, 0.58, "van"),
        _car((5.4, 2.0, 1.85), pickup, 0.60, "pickup"),
    )


def _axle(m: Model, x: float, width: float, radius: float, thick: float = 0.32) -> None:
    for sign in (-1, 1):
        y = sorted((sign * (width / 2 - thick), sign * (width / 2 - 0.02)))
        arch = (
            (np.hypot(m.x - x, m.z - radius) < radius + 0.08)
            & (m.y > y[0] - 0.05)
            & (m.y < y[1] + 0.1)
        )
        m.put(Mat.EMPTY, arch)
        m.wheel(x, (y[0], y[1]), radius)


@lru_cache(maxsize=1)
def buses() -> tuple[Model, ...]:
    """Return a city bus and a coach."""
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
        m.put(
            Mat.ORANGE,
            solid & front & (m.z >= height - 0.5) & (m.z < height - 0.2) & (np.abs(m.y) < 0.9),
        )
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
    cab = (
        (m.x >= rear)
        & (m.x <= front - slope)
        & (np.abs(m.y) <= width / 2)
        & (m.z > 0.45)
        & (m.z < height)
    )
    m.put(Mat.PAINT, cab)
    glass = cab & (m.z > 0.56 * height) & (m.z < 0.88 * height)
    m.put(Mat.GLASS, glass & (m.x > front - slope - 0.15) & (np.abs(m.y) < width / 2 - 0.12))
    m.put(
        Mat.GLASS,
        glass & (np.abs(m.y) > width / 2 - 0.15) & (m.x > rear + 0.5) & (m.x < front - 0.45),
    )
    m.put(
        Mat.TRIM,
        cab
        & (m.x > front - 0.15)
        & (m.z < 0.5 * height)
        & (m.z > 0.34 * height)
        & (np.abs(m.y) < width * 0.33),
    )
    m.put(
        Mat.HEADLIGHT,
        cab & (m.x > front - 0.15) & (m.z < 0.34 * height) & (np.abs(m.y) > width * 0.3),
    )


@lru_cache(maxsize=1)
def trucks() -> tuple[Model, ...]:
    """Return a box truck, a flat-bed truck with a load and a tipper."""
    out = []
    for kind, length, height in (("box", 8.2, 3.3), ("flat", 7.6, 2.7), ("tipper", 7.4, 3.0)):
        width = 2.5
        m = Model((length, width, height), 0.1)
        front, back = length / 2, -length / 2
        m.box(Mat.TRIM, (back, front - 0.3), (-0.5, 0.5), (0.55, 0.95))
        _cab(m, front - 1.9, front, width, 2.6)
        bed = front - 2.1
        if kind == "box":
            m.box(Mat.PAINT2, (back, bed), (-1.25, 1.25), (0.95, height))
            rear = (m.grid == Mat.PAINT2) & (m.x < back + 0.1)
            m.put(Mat.TRIM, rear & (np.abs(m.y) < 0.06))
        elif kind == "flat":
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
    """Return a container trailer and a curtain-sided one, both standing on their legs."""
    out = []
    for length, height, ribs in ((12.0, 3.8, 0.5), (9.5, 3.4, 1.6)):
        m = Model((length, 2.5, height), 0.1)
        m.box(Mat.PAINT2, (-length / 2, length / 2), (-1.25, 1.25), (1.15, height))
        groove = (m.grid == Mat.PAINT2) & (np.abs(m.y) > 1.15) & (np.mod(m.x, ribs) < 0.1)
        m.put(Mat.METAL, groove)
        m.put(
            Mat.METAL,
            (m.grid == Mat.PAINT2) & (m.x < -length / 2 + 0.1) & (np.mod(m.y, 0.62) < 0.1),
        )
        m.box(Mat.TRIM, (-length / 2, length / 2), (-0.5, 0.5), (0.85, 1.15))
        for sign in (-0.8, 0.8):
            m.box(
                Mat.METAL,
                (length / 2 - 3.0, length / 2 - 2.8),
                (sign - 0.1, sign + 0.1),
                (0.0, 1.1),
            )
        for x in (0.9, 2.1, 3.3):
            _axle(m, -length / 2 + x, 2.5, 0.5)
        out.append(m.finish())
    return tuple(out)


@lru_cache(maxsize=1)
def construction_vehicles() -> tuple[Model, ...]:
    """Return an excavator and a wheel loader."""
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
