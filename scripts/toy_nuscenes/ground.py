"""Ground: a plane at z = 0 with a class and a colour per 10 cm cell."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import cv2
import numpy as np

from scripts.toy_nuscenes.arrays import as_columns, f32, times
from scripts.toy_nuscenes.classes import Occ
from scripts.toy_nuscenes.layout import Junction, Layout, Road
from scripts.toy_nuscenes.noise import TILE, noise_tile

RESOLUTION_M = 0.1
CURB_M = 0.2
_SHIFT = 4  # OpenCV draws with 1/16 pixel


class Canvas:
    """Map between scene metres and raster cells.

    Cell [row, column] covers `lower + (column, row) * resolution`.
    """

    def __init__(
        self, lower: np.ndarray, upper: np.ndarray, resolution: float = RESOLUTION_M
    ) -> None:
        """Create a canvas between corners [2] in scene metres."""
        self.lower, self.resolution = lower, resolution
        columns, rows = np.round((upper - lower) / resolution).astype(int)
        self.shape = (int(rows), int(columns))

    def pixels(self, points: np.ndarray) -> np.ndarray:
        """Convert points [..., 2] in scene metres to fractional (column, row) [..., 2].

        Cell centres have integer coordinates.
        """
        return (points - self.lower) / self.resolution - 0.5

    def cells(self, points: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Convert float32 [n, 2 or 3] points like `pixels`: column and row, each float32 [n]."""
        column, row = (
            (points[:, k] - np.float32(self.lower[k])) * np.float32(1 / self.resolution)
            - np.float32(0.5)
            for k in range(2)
        )
        return column, row

    def fill(self, image: np.ndarray, outline: np.ndarray, value: float | tuple) -> None:
        """Fill a polygon [n, 2] in scene metres."""
        fixed = np.round(self.pixels(outline) * (1 << _SHIFT)).astype(np.int32)
        cv2.fillPoly(image, [fixed[:, None]], value, lineType=cv2.LINE_8, shift=_SHIFT)

    def centres(self, step: int = 1) -> tuple[np.ndarray, np.ndarray]:
        """Return coordinates x, y [rows, columns] of every `step`-th cell centre, scene metres."""
        rows, columns = self.shape
        x = self.lower[0] + (np.arange(0, columns, step) + 0.5) * self.resolution
        y = self.lower[1] + (np.arange(0, rows, step) + 0.5) * self.resolution
        grid_x, grid_y = np.meshgrid(x, y)
        return grid_x, grid_y


@dataclass(frozen=True)
class Ground:
    """Painted ground.

    classes: uint8 [rows, columns] of `Occ`.
    albedo: float32 [rows, columns, 3], RGB reflectance; `mips` holds it at 1, 2, 4, ... times the
    cell size.
    road_distance: float32 [rows, columns], metres to the nearest road surface (0 on it).
    main_offset, main_s: float32 [rows, columns], lateral offset from and arc length along the main
    road, metres.
    """

    canvas: Canvas
    classes: np.ndarray
    mips: tuple[np.ndarray, ...]
    road_distance: np.ndarray
    main_offset: np.ndarray
    main_s: np.ndarray

    def lookup(self, raster: np.ndarray, points: np.ndarray) -> np.ndarray:
        """Return the nearest-cell values [n] of a raster at points [n, 2] in scene metres.

        Beyond the border, the values of the edge are used.
        """
        cells = np.round(self.canvas.pixels(points)).astype(np.int32)
        rows, columns = self.canvas.shape
        return raster[np.clip(cells[:, 1], 0, rows - 1), np.clip(cells[:, 0], 0, columns - 1)]


def _distance(mask: np.ndarray) -> np.ndarray:
    """Return the distance in metres of every cell to the nearest cell in `mask`."""
    return cv2.distanceTransform((mask == 0).astype(np.uint8), cv2.DIST_L2, 3) * RESOLUTION_M


def _main_coordinates(layout: Layout, canvas: Canvas) -> tuple[np.ndarray, np.ndarray]:
    x, y = canvas.centres(10)
    s, d = layout.main.line.nearest(np.stack([x.ravel(), y.ravel()], -1))
    rows, columns = canvas.shape
    size = (x.shape[1] * 10, x.shape[0] * 10)
    # cv2.resize aligns the corners of the cells, not the sampled centres: shift by 4.5 cells.
    shift = f32([[1, 0, -4.5], [0, 1, -4.5]])
    out = []
    for values in (s, d):
        big = cv2.resize(
            values.reshape(x.shape).astype(np.float32), size, interpolation=cv2.INTER_LINEAR
        )
        moved = cv2.warpAffine(
            big, shift, (columns, rows), flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE
        )
        out.append(moved)
    return out[0], out[1]


def _road_mask(layout: Layout, canvas: Canvas) -> np.ndarray:
    mask = np.zeros(canvas.shape, np.uint8)
    for road in layout.roads:
        canvas.fill(mask, road.outline(), 1)
    corner = 4.0  # metres; closing the mask rounds the corners of junctions
    grown = (_distance(mask) < corner).astype(np.uint8)
    return (_distance(1 - grown) >= corner).astype(np.uint8) | mask


def junction_mask(layout: Layout, canvas: Canvas, grow: float = 3.5) -> np.ndarray:
    """Return a mask uint8 [rows, columns] of crossing roads, grown by `grow` metres."""
    out = np.zeros(canvas.shape, np.uint8)
    for junction in layout.junctions:
        one, other = np.zeros(canvas.shape, np.uint8), np.zeros(canvas.shape, np.uint8)
        main, cross = layout.main, junction.road
        near = max(30.0, main.spec.edge_left - main.spec.edge_right)
        canvas.fill(
            one,
            main.line.strip(
                main.spec.edge_right - grow,
                main.spec.edge_left + grow,
                junction.s_main - near,
                junction.s_main + near,
            ),
            1,
        )
        canvas.fill(
            other,
            cross.line.strip(
                cross.spec.edge_right - grow,
                cross.spec.edge_left + grow,
                -near,
                cross.line.length + near,
            ),
            1,
        )
        out |= one & other
    return out


def _by_side(layout: Layout, offset: np.ndarray, name: str) -> np.ndarray:
    left, right = getattr(layout.recipe.left, name), getattr(layout.recipe.right, name)
    return np.where(offset > 0, np.float32(left), np.float32(right))


def _classes(layout: Layout, canvas: Canvas, rng: np.random.Generator) -> tuple[np.ndarray, ...]:
    """Return the classes, road distance, main road coordinates and curb mask as rasters."""
    road = _road_mask(layout, canvas)
    distance = _distance(road)
    s, offset = _main_coordinates(layout, canvas)
    verge, sidewalk = _by_side(layout, offset, "verge"), _by_side(layout, offset, "sidewalk")
    classes = np.full(canvas.shape, int(Occ.TERRAIN), np.uint8)
    for sign in (-1, 1):
        spec = layout.side(sign)
        front = {"lawn": Occ.TERRAIN, "paved": Occ.SIDEWALK, "yard": Occ.DRIVEABLE_SURFACE}[
            spec.front
        ]
        reach = spec.verge + spec.sidewalk + spec.setback + (12.0 if spec.front == "yard" else 3.0)
        classes[(np.sign(offset) == sign) & (distance < reach)] = int(front)
    classes[(distance > 0) & (distance < verge)] = int(Occ.TERRAIN)
    classes[(distance > 0) & (distance >= verge) & (distance < verge + sidewalk)] = int(
        Occ.SIDEWALK
    )
    for outline, occ in _patches(layout, rng):
        patch = np.zeros(canvas.shape, np.uint8)
        canvas.fill(patch, outline, 1)
        classes[(patch > 0) & (distance > 0)] = int(occ)
    curb = (distance > 0) & (distance < CURB_M)
    classes[road > 0] = int(Occ.DRIVEABLE_SURFACE)
    crossing = junction_mask(layout, canvas)
    for island in _islands(layout):
        patch = np.zeros(canvas.shape, np.uint8)
        canvas.fill(patch, island, 1)
        patch[crossing > 0] = 0
        inner = cv2.erode(patch, np.ones((3, 3), np.uint8))
        curb |= (patch > 0) & (inner == 0)
        classes[patch > 0] = int(Occ.OTHER_FLAT)
    return classes, distance, s, offset, curb


def _islands(layout: Layout) -> Iterator[np.ndarray]:
    """Yield the outlines of medians and traffic islands on the carriageway."""
    for road in layout.roads:
        half = road.spec.median / 2
        if half > 0:
            yield road.line.strip(-half, half, road.start_s, road.stop_s)
    for junction in layout.junctions:
        spec = layout.main.spec
        if spec.median == 0 and spec.lanes_left and spec.lanes_right:
            for sign in (-1, 1):
                reach = junction.road.spec.edge_left + 8.0
                yield layout.main.line.strip(
                    -0.55,
                    0.55,
                    junction.s_main + sign * reach,
                    junction.s_main + sign * (reach + 7.0),
                )


def _patches(layout: Layout, rng: np.random.Generator) -> Iterator[tuple[np.ndarray, Occ]]:
    """Yield driveways, squares of red paving, and bare ground next to the main road."""
    line = layout.main.line
    for sign in (-1, 1):
        spec = layout.side(sign)
        edge = layout.main.spec.edge_left if sign > 0 else layout.main.spec.edge_right
        outer = edge + sign * (spec.verge + spec.sidewalk)
        s = rng.uniform(5, 25)
        while s < line.length:
            kind = rng.choice(["drive", "square", "none"], p=[0.4, 0.35, 0.25])
            if kind == "drive":
                width = rng.uniform(2.8, 6.0)
                yield (
                    line.strip(edge, outer + sign * (spec.setback + 2), s, s + width),
                    Occ.DRIVEABLE_SURFACE,
                )
            elif kind == "square":
                width, depth = rng.uniform(5, 14), rng.uniform(3, 8)
                start = outer if rng.random() < 0.6 else edge + sign * spec.verge
                yield line.strip(start, start + sign * depth, s, s + width), Occ.OTHER_FLAT
            s += rng.uniform(14, 34)


def _tile(seed: int, sigma: float, shape: tuple[int, int]) -> np.ndarray:
    repeat = (-(-shape[0] // TILE), -(-shape[1] // TILE))
    return np.tile(noise_tile(seed, sigma), repeat)[: shape[0], : shape[1]]


def _albedo(
    ground: tuple[np.ndarray, ...], canvas: Canvas, layout: Layout, rng: np.random.Generator
) -> np.ndarray:
    """Paint the surfaces: float32 [rows, columns, 3]; each class only on its cells."""
    classes, distance, s, offset, curb = (a.reshape(-1) for a in ground)
    out = np.empty((classes.size, 3), np.float32)
    noise = _Noise(canvas.shape)
    asphalt = np.float32(rng.uniform(0.085, 0.17)) * f32([1.0, 1.0, rng.uniform(1.0, 1.08)])
    rows = np.flatnonzero(classes == Occ.DRIVEABLE_SURFACE)
    broad, middle, fine = noise.at(rows)
    lane = np.float32(4 * np.pi / layout.main.spec.lane_width)
    track = np.cos((np.abs(offset[rows]) - np.float32(layout.main.spec.median / 2)) * lane) * (
        distance[rows] == 0
    )
    tone = 1 + np.float32(0.10) * (broad + fine) + np.float32(0.06) * middle
    out[rows] = times(tone * (1 + np.float32(0.05) * track), asphalt)
    _paint_paving(out, np.flatnonzero(classes == Occ.SIDEWALK), s, offset, noise, rng)
    rows = np.flatnonzero(classes == Occ.OTHER_FLAT)
    _, middle, fine = noise.at(rows)
    brick = f32([rng.uniform(0.34, 0.46), rng.uniform(0.13, 0.19), rng.uniform(0.09, 0.13)])
    course = s[rows] / np.float32(0.4)
    joint = (np.mod(course, 1) < 0.25) ^ (
        np.mod(offset[rows] + np.float32(0.2) * np.mod(np.floor(course), 2), 0.4) < 0.1
    )
    out[rows] = times(1 + np.float32(0.08) * (middle + fine) - np.float32(0.18) * joint, brick)
    rows = np.flatnonzero(classes == Occ.TERRAIN)
    broad, middle, fine = noise.at(rows)
    grass = f32([rng.uniform(0.10, 0.17), rng.uniform(0.19, 0.26), rng.uniform(0.04, 0.07)])
    bare = np.clip(
        broad * np.float32(0.45) + middle * np.float32(0.3) - np.float32(rng.uniform(0.1, 0.7)),
        0,
        1,
    )
    soil = np.stack([1 - bare, bare]).T @ np.stack([grass, f32([0.27, 0.20, 0.12])])
    out[rows] = soil * as_columns(1 + np.float32(0.16) * fine + np.float32(0.12) * middle)
    rows = np.flatnonzero(curb)
    out[rows] = times(1 + np.float32(0.05) * noise.at(rows)[2], f32([0.5, 0.49, 0.46]))
    return np.clip(out, 0.01, 1.0).reshape(*canvas.shape, 3)


class _Noise:
    """Coarse, medium and fine noise over a raster, for flat cell indices."""

    def __init__(self, shape: tuple[int, int]) -> None:
        self._rasters = [
            _tile(seed, sigma, shape).reshape(-1) for seed, sigma in ((1, 60.0), (2, 9.0), (3, 1.2))
        ]

    def at(self, rows: np.ndarray) -> list[np.ndarray]:
        return [np.take(raster, rows) for raster in self._rasters]


def _paint_paving(
    out: np.ndarray,
    rows: np.ndarray,
    s: np.ndarray,
    offset: np.ndarray,
    noise: _Noise,
    rng: np.random.Generator,
) -> None:
    """Paint slabs along the main road."""
    paving = np.float32(rng.uniform(0.30, 0.46)) * f32(
        [1.0, rng.uniform(0.95, 0.99), rng.uniform(0.86, 0.97)]
    )
    pitch = np.float32(rng.choice([0.5, 0.6, 1.0, 1.5]))
    along, across = s[rows] / pitch, offset[rows] / pitch
    column, row = np.floor(along), np.floor(across)
    joint = (along - column < 0.07 / pitch) | (across - row < 0.07 / pitch)
    slab = np.sin(column * np.float32(12.99) + row * np.float32(78.2)) * np.float32(0.06)
    broad, _, fine = noise.at(rows)
    out[rows] = (
        1 + slab + np.float32(0.06) * broad + np.float32(0.05) * fine - np.float32(0.28) * joint
    )[:, None] * paving


def _dashes(start: float, stop: float, length: float, gap: float) -> Iterator[tuple[float, float]]:
    s = start
    while s < stop:
        yield s, s + length
        s += length + gap


def _road_lines(road: Road) -> Iterator[tuple[np.ndarray, str]]:
    """Yield the outlines and colours of the painted lines along a road."""
    spec, line = road.spec, road.line
    half = spec.median / 2

    def stripe(
        d: float, width: float = 0.13, start: float = road.start_s, stop: float = road.stop_s
    ) -> np.ndarray:
        return line.strip(d - width / 2, d + width / 2, start, stop)

    for sign, lanes, parking in (
        (1, spec.lanes_left, spec.parking_left),
        (-1, spec.lanes_right, spec.parking_right),
    ):
        for k in range(1, lanes):
            for start, stop in _dashes(road.start_s, road.stop_s, 3.0, 5.0):
                yield stripe(sign * (half + k * spec.lane_width), 0.13, start, stop), "white"
        edge = sign * (half + lanes * spec.lane_width)
        if parking:
            for start, _ in _dashes(road.start_s, road.stop_s, 0.12, 5.6):
                yield line.strip(edge, edge + sign * parking, start, start + 0.12), "white"
        yield stripe(edge), "white"
    if half:
        yield stripe(half + 0.25), "yellow"
        yield stripe(-half - 0.25), "yellow"
    elif spec.lanes_left and spec.lanes_right:
        yield stripe(0.12, 0.11), "yellow"
        yield stripe(-0.12, 0.11), "yellow"


def _crosswalks(layout: Layout, junction: Junction) -> Iterator[np.ndarray]:
    """Yield the outlines of zebra crossing bars and stop lines at a junction."""
    pairs = (
        (layout.main, junction.s_main, junction.road),
        (junction.road, junction.s_cross, layout.main),
    )
    for road, s, other in pairs:
        reach = max(other.spec.edge_left, -other.spec.edge_right) + 3.8
        for sign in (-1, 1):
            start = s + sign * reach
            if not road.start_s <= start <= road.stop_s:
                continue
            for d in np.arange(road.spec.edge_right + 0.5, road.spec.edge_left - 0.5, 1.0):
                yield road.line.strip(d, d + 0.5, start, start + sign * 2.8)
            inner = road.spec.edge_right if sign < 0 else 0.0
            outer = 0.0 if sign < 0 else road.spec.edge_left
            yield road.line.strip(inner + 0.3, outer - 0.3, start + sign * 3.8, start + sign * 4.2)


def _paint_lines(albedo: np.ndarray, classes: np.ndarray, canvas: Canvas, layout: Layout) -> None:
    white, yellow = np.zeros(canvas.shape, np.uint8), np.zeros(canvas.shape, np.uint8)
    for road in layout.roads:
        for outline, colour in _road_lines(road):
            canvas.fill(white if colour == "white" else yellow, outline, 1)
    free = (junction_mask(layout, canvas, 8.2) == 0).astype(np.uint8)
    white *= free
    yellow *= free
    for junction in layout.junctions:
        for outline in _crosswalks(layout, junction):
            canvas.fill(white, outline, 1)
    wear = np.clip(0.85 + 0.25 * _tile(4, 2.0, canvas.shape), 0.25, 1.0)
    road_surface = classes == Occ.DRIVEABLE_SURFACE
    for mask, paint in ((white, (0.72, 0.72, 0.70)), (yellow, (0.62, 0.44, 0.07))):
        here = (mask > 0) & road_surface
        albedo[here] += (f32(paint) - albedo[here]) * wear[here][:, None]


def _paint_repairs(
    albedo: np.ndarray,
    classes: np.ndarray,
    canvas: Canvas,
    layout: Layout,
    rng: np.random.Generator,
) -> None:
    """Paint darker patches of new asphalt, cracks and manhole covers."""
    shade = np.ones(canvas.shape, np.float32)
    for road in layout.roads:
        for _ in range(int(road.line.length / 9)):
            s, d = (
                rng.uniform(0, road.line.length),
                rng.uniform(road.spec.edge_right, road.spec.edge_left),
            )
            kind = rng.random()
            if kind < 0.35:
                canvas.fill(
                    shade,
                    road.line.strip(d, d + rng.uniform(0.5, 1.5), s, s + rng.uniform(1, 6)),
                    rng.uniform(0.72, 0.9),
                )
            elif kind < 0.6:
                circle = road.line.at(s, d)[0] + 0.35 * np.stack(
                    [np.cos(np.arange(12) * np.pi / 6), np.sin(np.arange(12) * np.pi / 6)], -1
                )
                canvas.fill(shade, circle, 0.5)
            else:
                walk = (
                    np.cumsum(rng.normal(0, 0.35, (14, 2)) + rng.normal(0, 0.3, 2), 0)
                    + road.line.at(s, d)[0]
                )
                points = np.round(canvas.pixels(walk) * 16).astype(np.int32)
                cv2.polylines(shade, [points[:, None]], False, 0.6, 1, cv2.LINE_AA, _SHIFT)
    here = classes == Occ.DRIVEABLE_SURFACE
    albedo[here] *= shade[here][:, None]


def paint_ground(layout: Layout) -> Ground:
    """Paint the ground of a scene."""
    rng = np.random.default_rng([*layout.recipe.seed, 2])
    canvas = Canvas(layout.lower, layout.upper)
    parts = _classes(layout, canvas, rng)
    classes, distance, s, offset, _ = parts
    albedo = _albedo(parts, canvas, layout, rng)
    _paint_repairs(albedo, classes, canvas, layout, rng)
    _paint_lines(albedo, classes, canvas, layout)
    mips = [albedo]
    for _ in range(5):
        mips.append(cv2.pyrDown(mips[-1]))
    return Ground(canvas, classes, tuple(mips), distance, offset, s)
