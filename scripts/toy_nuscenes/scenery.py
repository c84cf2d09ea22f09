"""Static world of a scene: buildings, trees, hedges, walls, lamps, signs and shelters."""

from __future__ import annotations

import numpy as np
from scipy.ndimage import gaussian_filter

from scripts.toy_nuscenes.classes import Occ
from scripts.toy_nuscenes.ground import Ground
from scripts.toy_nuscenes.layout import Layout, Road
from scripts.toy_nuscenes.recipes import SideSpec
from scripts.toy_nuscenes.reserve import Reserve, rectangle
from scripts.toy_nuscenes.statics import Kind, StaticWorld

WALL_COLOURS = {
    "house": (
        (0.62, 0.55, 0.42),
        (0.70, 0.68, 0.62),
        (0.45, 0.20, 0.14),
        (0.40, 0.47, 0.50),
        (0.66, 0.52, 0.30),
        (0.55, 0.58, 0.44),
    ),
    "apartment": (
        (0.48, 0.22, 0.15),
        (0.58, 0.50, 0.38),
        (0.63, 0.60, 0.55),
        (0.36, 0.19, 0.14),
        (0.55, 0.40, 0.28),
    ),
    "office": (
        (0.42, 0.46, 0.50),
        (0.62, 0.63, 0.64),
        (0.20, 0.25, 0.30),
        (0.52, 0.48, 0.42),
        (0.30, 0.34, 0.33),
    ),
    "shop": (
        (0.60, 0.52, 0.38),
        (0.44, 0.20, 0.15),
        (0.66, 0.63, 0.58),
        (0.30, 0.38, 0.42),
        (0.58, 0.36, 0.24),
    ),
    "warehouse": (
        (0.55, 0.57, 0.58),
        (0.36, 0.42, 0.50),
        (0.62, 0.58, 0.48),
        (0.45, 0.30, 0.25),
        (0.40, 0.44, 0.38),
    ),
}
ROOF_COLOURS = ((0.36, 0.15, 0.10), (0.20, 0.19, 0.19), (0.30, 0.22, 0.17), (0.25, 0.27, 0.30))
STYLES = ("house", "apartment", "office", "shop", "warehouse")
STREET_TREE_SPACING_M = {"shop": 13.0, "office": 12.0, "warehouse": 15.0, "apartment": 14.0}
STOREY_M = {"house": 2.7, "apartment": 3.0, "office": 3.6, "shop": 3.3, "warehouse": 5.0}
MAX_BUILDINGS = 80
MAX_TREES = 120


class _Builder:
    """Builder of the static world of one scene."""

    def __init__(self, layout: Layout, ground: Ground, seed_tail: int) -> None:
        self.layout, self.ground = layout, ground
        self.rng = np.random.default_rng([*layout.recipe.seed, seed_tail])
        self.world = StaticWorld(layout.lower, layout.upper)
        self.reserve = Reserve(ground, layout)
        add = self.world.slots.add
        self.metal = add(Occ.MANMADE, Kind.PLAIN, (0.16, 0.17, 0.17))
        self.concrete = add(Occ.MANMADE, Kind.PLAIN, (0.52, 0.50, 0.46))
        self.boards = add(Occ.MANMADE, Kind.STRIPES, (0.36, 0.25, 0.16))
        self.mesh = add(Occ.MANMADE, Kind.STRIPES, (0.42, 0.44, 0.45))
        self.signal = add(Occ.MANMADE, Kind.PLAIN, (0.65, 0.48, 0.05))
        self.board_blue = add(Occ.MANMADE, Kind.PLAIN, (0.05, 0.14, 0.42))
        self.board_red = add(Occ.MANMADE, Kind.PLAIN, (0.60, 0.05, 0.05))
        self.bark = add(Occ.VEGETATION, Kind.BARK, (0.20, 0.14, 0.09))
        self.hedge = add(Occ.VEGETATION, Kind.HEDGE, (0.08, 0.17, 0.05))
        noise = gaussian_filter(self.rng.standard_normal((40, 40, 40)), 1.1, mode="wrap")
        self.rough = np.clip(0.5 + 0.28 * noise / noise.std(), 0, 1)
        self.buildings = self.trees = 0

    # ---------------------------------------------------------------- buildings
    def street(self, road: Road, sign: int, spec: SideSpec, rows: int) -> None:
        """Place `rows` rows of buildings along one side of a road."""
        if spec.style == "none":
            spec_style = "house"
            first = 34.0
        else:
            spec_style, first = spec.style, spec.verge + spec.sidewalk + spec.setback
        edge = road.spec.edge_left if sign > 0 else -road.spec.edge_right
        for row in range(rows):
            s = self.rng.uniform(0, 12)
            while s < road.line.length:
                length, depth = self._footprint(spec_style)
                distance = edge + first + row * 22.0 + depth / 2 + self.rng.uniform(0, 1.5)
                self._building(
                    road,
                    sign,
                    s + length / 2,
                    distance,
                    length,
                    depth,
                    spec_style,
                    spec.height,
                    row,
                )
                s += length + self.rng.uniform(*spec.gap)

    def _footprint(self, style: str) -> tuple[float, float]:
        lengths = {
            "house": (8, 13),
            "apartment": (14, 26),
            "office": (16, 32),
            "shop": (8, 16),
            "warehouse": (18, 36),
        }
        depths = {
            "house": (8, 10),
            "apartment": (10, 14),
            "office": (12, 18),
            "shop": (9, 13),
            "warehouse": (12, 20),
        }
        return float(self.rng.uniform(*lengths[style])), float(self.rng.uniform(*depths[style]))

    def _building(
        self,
        road: Road,
        sign: int,
        s: float,
        distance: float,
        length: float,
        depth: float,
        style: str,
        heights: tuple[float, float],
        row: int,
    ) -> None:
        if self.buildings >= MAX_BUILDINGS:
            return
        centre, heading = road.line.at(s, sign * distance)
        yaw = float(heading) + float(self.rng.normal(0, 0.01))
        if not self.reserve.claim(rectangle(centre, yaw, length / 2 + 0.6, depth / 2 + 0.6)):
            return
        outline = rectangle(centre, yaw, length / 2, depth / 2)
        if self.ground.lookup(self.ground.road_distance, outline).min() < 2.2:
            return
        self.buildings += 1
        height = min(float(self.rng.uniform(*heights)) + 2.0 * row, 15.8)
        gable = style == "house" or (style == "shop" and self.rng.random() < 0.2)
        rise = float(self.rng.uniform(1.8, 3.2)) if gable and height < 11 else 0.0
        colour = np.array(WALL_COLOURS[style][self.rng.integers(len(WALL_COLOURS[style]))])
        colour *= self.rng.uniform(0.8, 1.15, 3).clip(0.85, 1.1) * self.rng.uniform(0.85, 1.15)
        slots = self.world.slots
        slot = slots.add(Occ.MANMADE, Kind.BUILDING, colour)
        storeys = max(1, round(height / STOREY_M[style]))
        slots.box[slot] = (*centre, yaw, length / 2, depth / 2, height, rise, storeys)
        slots.style[slot] = self._facade(style)
        middle, half = (float(centre[0]), float(centre[1])), (length / 2, depth / 2)
        self.world.put_box(slot, middle, yaw, half, 0.0, height, rise)

    def _facade(self, style: str) -> np.ndarray:
        """Return the style row of a slot, in the order of `facades.Building.of_slot`."""
        rng = self.rng
        pitch, width, tall = {
            "house": (rng.uniform(2.4, 3.4), 0.42, 0.5),
            "apartment": (rng.uniform(2.2, 3.4), rng.uniform(0.4, 0.6), 0.52),
            "office": (rng.uniform(1.5, 2.6), rng.uniform(0.7, 0.92), rng.uniform(0.6, 0.8)),
            "shop": (rng.uniform(2.0, 3.0), 0.48, 0.5),
            "warehouse": (rng.uniform(4.0, 7.0), 0.55, 0.18),
        }[style]
        roof = ROOF_COLOURS[rng.integers(len(ROOF_COLOURS))]
        trim = np.full(3, rng.uniform(0.12, 0.75))
        brick = (
            rng.uniform(0.1, 0.3)
            if style in ("apartment", "shop", "house") and rng.random() < 0.6
            else 0.0
        )
        return np.array(
            [STYLES.index(style), pitch, width, tall, *roof, rng.uniform(0.02, 0.2), *trim, brick]
        )

    # ---------------------------------------------------------------- vegetation
    def tree(self, point: np.ndarray, *, street: bool = False) -> None:
        """Place a tree if there is space; a street tree has a bare trunk and a smaller crown."""
        if self.trees >= MAX_TREES or self.world.slots.room < 6:
            return
        if not self.reserve.claim(rectangle(point, 0.0, 0.7, 0.7)):
            return
        rng, world = self.rng, self.world
        self.trees += 1
        conifer = not street and rng.random() < 0.22
        crown = rng.uniform(1.3, 2.1) if street or conifer else rng.uniform(1.5, 2.9)
        trunk = 0.8 if conifer else rng.uniform(2.4, 3.0) if street else rng.uniform(1.6, 2.6)
        tall = rng.uniform(1.0, 1.5) * crown * (1.9 if conifer else 1.0)
        centre = np.array([*point, trunk + tall * 0.86])
        green = np.array(
            [rng.uniform(0.09, 0.17), rng.uniform(0.19, 0.29), rng.uniform(0.04, 0.08)]
        )
        if rng.random() < 0.12:
            green = np.array([rng.uniform(0.30, 0.42), rng.uniform(0.20, 0.28), 0.05])
        green = green * (0.6 if conifer else 1.0)
        slot = world.slots.add(Occ.VEGETATION, Kind.CANOPY, green)
        world.slots.box[slot, :6] = (*centre, crown, crown, tall)
        thick = rng.uniform(0.14, 0.24)
        world.put_box(
            self.bark,
            (float(point[0]), float(point[1])),
            rng.uniform(0, 1.5),
            (thick, thick),
            0.0,
            trunk + 0.6 * tall,
        )
        rough = np.roll(self.rough, tuple(rng.integers(0, 40, 3)), (0, 1, 2))
        world.put_ellipsoid(
            slot, centre, np.array([crown, crown, tall]), rough, 1.0 if conifer else 0.0
        )
        if not conifer:
            for _ in range(3):
                shift = rng.normal(0, 0.45, 3) * crown
                world.put_ellipsoid(
                    slot, centre + shift * (1, 1, 0.4), np.array([0.62, 0.62, 0.55]) * crown, rough
                )

    def bush(self, point: np.ndarray) -> None:
        """Place a round bush."""
        if self.world.slots.room < 6 or not self.reserve.claim(rectangle(point, 0.0, 0.6, 0.6)):
            return
        radius = self.rng.uniform(0.5, 1.1)
        centre = np.array([*point, radius * 0.6])
        green = np.array([self.rng.uniform(0.07, 0.16), self.rng.uniform(0.16, 0.25), 0.05])
        slot = self.world.slots.add(Occ.VEGETATION, Kind.CANOPY, green)
        radii = np.array([radius, radius, radius * 0.8])
        self.world.slots.box[slot, :6] = (*centre, *radii)
        self.world.put_ellipsoid(slot, centre, radii * 1.1, self.rough)

    def greenery(self, sign: int, spec: SideSpec) -> None:
        """Place trees and bushes along one side of the main road."""
        line, rng = self.layout.main.line, self.rng
        edge = self.layout.main.spec.edge_left if sign > 0 else -self.layout.main.spec.edge_right
        spacing = spec.verge_tree_spacing or STREET_TREE_SPACING_M.get(spec.style, 0.0)
        if spacing:
            inner = spec.verge / 2 if spec.verge > 0.9 else 0.9
            for s in np.arange(rng.uniform(0, 8), line.length, spacing):
                self.tree(line.at(s + rng.normal(0, 0.8), sign * (edge + inner))[0], street=True)
        outer = edge + spec.verge + spec.sidewalk
        width = 24.0
        count = int(spec.front_tree_density * line.length * width / 100)
        for _ in range(count):
            point = line.at(
                rng.uniform(0, line.length), sign * (outer + 0.9 + width * rng.random() ** 1.5)
            )[0]
            if self.ground.lookup(self.ground.classes, point[None])[0] != int(Occ.TERRAIN):
                continue
            if self.ground.lookup(self.ground.road_distance, point[None])[0] < 1.0:
                continue
            if rng.random() < 0.65:
                self.tree(point)
            else:
                self.bush(point)

    # ---------------------------------------------------------------- furniture
    def fence(self, sign: int, spec: SideSpec) -> None:
        """Place a hedge, wall or fence along the back of the sidewalk, with gaps."""
        if spec.fence == "none":
            return
        line, rng = self.layout.main.line, self.rng
        edge = self.layout.main.spec.edge_left if sign > 0 else -self.layout.main.spec.edge_right
        slot = {"hedge": self.hedge, "wall": self.concrete, "fence": self.mesh}[spec.fence]
        thick = {"hedge": 0.4, "wall": 0.16, "fence": 0.15}[spec.fence]
        offset = sign * (edge + spec.verge + spec.sidewalk + 0.7)
        s = rng.uniform(0, 6)
        while s < line.length:
            length, height = rng.uniform(7, 18), rng.uniform(0.9, 1.9)
            for piece in np.arange(s, s + length, 1.0):
                centre, heading = line.at(piece, offset)
                outline = rectangle(centre, float(heading), 0.55, thick)
                if self.reserve.claim(outline, keep=False) and self._off_road(centre, 1.2):
                    self.world.put_box(
                        slot,
                        (float(centre[0]), float(centre[1])),
                        float(heading),
                        (0.6, thick),
                        0.0,
                        height,
                    )
            s += length + rng.uniform(3, 7)

    def _off_road(self, point: np.ndarray, margin: float) -> bool:
        return bool(self.ground.lookup(self.ground.road_distance, point[None])[0] > margin)

    def pole(self, point: np.ndarray, height: float, inward: float, kind: str) -> None:
        """Place a street lamp, traffic light or sign whose arm points in direction `inward`."""
        if not self._off_road(point, 0.25) or not self.reserve.claim(
            rectangle(point, 0.0, 0.3, 0.3)
        ):
            return
        put = self.world.put_box
        x, y = float(point[0]), float(point[1])
        put(self.metal, (x, y), 0.0, (0.1, 0.1), 0.0, height)
        reach = np.array([np.cos(inward), np.sin(inward)])
        if kind == "lamp":
            arm = point + reach * 0.9
            put(
                self.metal, (float(arm[0]), float(arm[1])), inward, (0.9, 0.1), height - 0.2, height
            )
        elif kind == "signal":
            arm = point + reach * 1.6
            put(
                self.metal,
                (float(arm[0]), float(arm[1])),
                inward,
                (1.6, 0.1),
                height - 0.4,
                height - 0.2,
            )
            tip = point + reach * 3.0
            put(
                self.signal,
                (float(tip[0]), float(tip[1])),
                inward,
                (0.2, 0.2),
                height - 1.3,
                height - 0.2,
            )
        else:
            slot = self.board_blue if kind == "blue" else self.board_red
            put(slot, (x, y), inward, (0.35, 0.12), height - 0.8, height)

    def furniture(self) -> None:
        """Place lamps, signs, traffic lights and bus shelters along the roads."""
        rng = self.rng
        for road in self.layout.roads:
            for sign in (-1, 1):
                edge = road.spec.edge_left if sign > 0 else -road.spec.edge_right
                for s in np.arange(rng.uniform(4, 20), road.line.length, rng.uniform(20, 28)):
                    point, heading = road.line.at(s, sign * (edge + 0.6))
                    self.pole(
                        point, rng.uniform(5.5, 7.0), float(heading) - sign * np.pi / 2, "lamp"
                    )
                for s in rng.uniform(0, road.line.length, max(2, int(road.line.length / 40))):
                    point, heading = road.line.at(s, sign * (edge + 0.7))
                    self.pole(
                        point,
                        2.6,
                        float(heading) + np.pi / 2,
                        "blue" if rng.random() < 0.5 else "red",
                    )
        for junction in self.layout.junctions:
            main, cross = self.layout.main, junction.road
            for sign in (-1, 1):
                edge = main.spec.edge_left if sign > 0 else -main.spec.edge_right
                reach = (cross.spec.edge_left + 4.5) * sign
                point, heading = main.line.at(junction.s_main + reach, sign * (edge + 0.9))
                self.pole(point, 5.0, float(heading) - sign * np.pi / 2, "signal")
        self._shelters()

    def _shelters(self) -> None:
        main = self.layout.main
        for sign in (-1, 1):
            spec = self.layout.side(sign)
            if spec.sidewalk < 1.9:
                continue
            edge = main.spec.edge_left if sign > 0 else -main.spec.edge_right
            s = self.rng.uniform(85, 125)
            back, heading = main.line.at(s, sign * (edge + spec.verge + spec.sidewalk - 0.4))
            yaw = float(heading)
            if not self.reserve.claim(rectangle(back, yaw, 2.2, 0.9)):
                continue
            front = back + np.array([np.sin(yaw), -np.cos(yaw)]) * sign * 0.6
            self.world.put_box(
                self.metal, (float(front[0]), float(front[1])), yaw, (2.0, 0.8), 2.3, 2.5
            )
            self.world.put_box(
                self.mesh, (float(back[0]), float(back[1])), yaw, (2.0, 0.1), 0.2, 2.3
            )


def build_statics(layout: Layout, ground: Ground) -> tuple[StaticWorld, Reserve]:
    """Fill the static world of a scene; also return the occupied ground."""
    builder = _Builder(layout, ground, 3)
    for sign in (-1, 1):
        builder.street(layout.main, sign, layout.side(sign), rows=1)
    for junction in layout.junctions:
        for sign in (-1, 1):
            builder.street(junction.road, sign, layout.side(-sign), rows=1)
    for sign in (-1, 1):
        builder.fence(sign, layout.side(sign))
    builder.furniture()
    for sign in (-1, 1):
        builder.greenery(sign, layout.side(sign))
    for sign in (-1, 1):
        builder.street(layout.main, sign, layout.side(sign), rows=2)
    return builder.world, builder.reserve
