"""Voxel models of small objects: cycles, people, cones, barriers and clutter."""

from __future__ import annotations

from functools import lru_cache
from itertools import pairwise

import numpy as np

from scripts.toy_nuscenes.shapes import Mat, Model


def _rider(m: Model, seat: tuple[float, float, float], lean: float) -> None:
    x, y, z = seat
    shoulder = (x + lean, y, z + 0.52)
    m.bar(Mat.TOP, (x, y, z), shoulder, 0.17)
    m.ball(Mat.SKIN, (shoulder[0] + 0.08, y, z + 0.74), (0.10, 0.09, 0.12))
    m.ball(Mat.HAIR, (shoulder[0] + 0.05, y, z + 0.80), (0.13, 0.12, 0.10))
    for sign in (-1, 1):
        m.bar(Mat.LEGS, (x, y + sign * 0.10, z), (x + 0.35, y + sign * 0.13, z - 0.30), 0.085)
        m.bar(
            Mat.LEGS,
            (x + 0.35, y + sign * 0.13, z - 0.30),
            (x + 0.18, y + sign * 0.13, z - 0.62),
            0.07,
        )
        m.bar(
            Mat.TOP,
            (shoulder[0], y + sign * 0.17, shoulder[2]),
            (x + 0.55, y + sign * 0.22, z + 0.22),
            0.06,
        )


def _ring(m: Model, x: float, radius: float, thick: float, mat: Mat) -> None:
    distance = np.hypot(m.x - x, m.z - radius)
    m.put(mat, (np.abs(distance - radius + thick) <= thick) & (np.abs(m.y) < max(thick, 0.04)))


@lru_cache(maxsize=1)
def bicycles() -> tuple[Model, ...]:
    """Return a bicycle with a rider and one without."""
    out = []
    for rider in (True, False):
        m = Model((1.76, 0.62, 1.78 if rider else 1.08), 0.04)
        for x in (-0.53, 0.53):
            _ring(m, x, 0.34, 0.045, Mat.TYRE)
            m.bar(Mat.METAL, (x, -0.05, 0.34), (x, 0.05, 0.34), 0.06)
        corners = [
            (-0.53, 0, 0.34),
            (-0.12, 0, 0.34),
            (0.36, 0, 0.80),
            (-0.25, 0, 0.80),
            (-0.12, 0, 0.34),
        ]
        for a, b in pairwise(corners):
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
    """Return a motorcycle with a rider and one without."""
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
    """Return two walking adults, a standing one and a child."""
    out = []
    for height, stride, width in (
        (1.78, 0.26, 0.64),
        (1.66, 0.22, 0.60),
        (1.74, 0.05, 0.62),
        (1.22, 0.20, 0.46),
    ):
        k = height / 1.78
        m = Model((2 * (stride + 0.18) * k, width, height), 0.05)
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
    """Return a large and a small traffic cone."""
    out = []
    for height, base in ((0.95, 0.46), (0.72, 0.38)):
        m = Model((base, base, height), 0.04)
        radius = np.hypot(m.x, m.y)
        inside = radius <= 0.04 + (base * 0.40) * (1 - m.z / height)
        m.put(Mat.ORANGE, inside)
        m.put(
            Mat.WHITE,
            inside
            & (
                ((m.z > 0.42 * height) & (m.z < 0.58 * height))
                | ((m.z > 0.72 * height) & (m.z < 0.82 * height))
            ),
        )
        m.box(Mat.TRIM, (-base, base), (-base, base), (0.0, 0.05))
        out.append(m.finish())
    return tuple(out)


@lru_cache(maxsize=1)
def barriers() -> tuple[Model, ...]:
    """Return a plastic water-filled barrier and a fence board on feet, both red and white."""
    m = Model((0.52, 2.4, 1.0), 0.05)
    m.put(Mat.RED, np.abs(m.x) <= 0.26 - 0.17 * np.clip(m.z / 0.6, 0, 1) + 0 * m.y)
    m.put(Mat.WHITE, (m.grid > 0) & (np.mod(m.y + 1.2, 1.2) > 0.6))
    board = Model((0.48, 2.2, 1.05), 0.05)
    stripe = np.mod(board.y + board.z, 0.7) > 0.35
    for low, high in ((0.35, 0.6), (0.75, 1.02)):
        plank = (
            (np.abs(board.x) < 0.07) & (board.z > low) & (board.z < high) & (np.abs(board.y) < 1.1)
        )
        board.put(Mat.RED, plank)
        board.put(Mat.WHITE, plank & stripe)
    for y in (-0.85, 0.85):
        board.box(Mat.TRIM, (-0.24, 0.24), (y - 0.12, y + 0.12), (0.0, 0.12))
        board.box(Mat.METAL, (-0.06, 0.06), (y - 0.06, y + 0.06), (0.1, 1.0))
    return m.finish(), board.finish()


@lru_cache(maxsize=1)
def others() -> tuple[Model, ...]:
    """Return a wheeled bin, a pallet with boxes, a shopping trolley and a heap of debris."""
    waste = Model((1.3, 1.1, 1.25), 0.05)
    waste.put(
        Mat.PAINT,
        (np.abs(waste.y) < 0.42 + 0.1 * waste.z)
        & (np.abs(waste.x) < 0.65)
        & (waste.z > 0.15)
        & (waste.z < 1.1),
    )
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
    cage = (
        (np.abs(trolley.x) < 0.48)
        & (np.abs(trolley.y) < 0.3)
        & (trolley.z > 0.4)
        & (trolley.z < 0.95)
    )
    core = (np.abs(trolley.x) < 0.42) & (np.abs(trolley.y) < 0.24) & (trolley.z > 0.46)
    trolley.put(Mat.METAL, cage & ~core)
    trolley.box(Mat.RED, (-0.5, -0.42), (-0.3, 0.3), (0.95, 1.05))
    for x in (-0.4, 0.4):
        for y in (-0.24, 0.24):
            trolley.box(Mat.TRIM, (x - 0.05, x + 0.05), (y - 0.05, y + 0.05), (0.0, 0.45))
    heap = Model((1.4, 1.2, 0.55), 0.05)
    heap.put(
        Mat.WOOD,
        heap.z
        < 0.5 * np.exp(-2.2 * (heap.x**2 + 1.3 * heap.y**2))
        + 0.06 * np.sin(9 * heap.x) * np.cos(11 * heap.y),
    )
    return waste.finish(), pallet.finish(), trolley.finish(), heap.finish()
