"""Placement and motion of the actors of a scene, without collisions."""

from __future__ import annotations

import numpy as np

from scripts.toy_nuscenes.actors import Actor, make_look
from scripts.toy_nuscenes.ground import Ground
from scripts.toy_nuscenes.layout import Layout, Road
from scripts.toy_nuscenes.paths import Motion, Polyline, cruising, standing
from scripts.toy_nuscenes.recipes import EGO_START_S
from scripts.toy_nuscenes.statics import VOXEL_M, StaticWorld

EGO_SIZE = (4.6, 1.9)
EGO_CENTRE_AHEAD_M = 1.3  # the ego frame is at the rear axle
CLEARANCE_M = 0.35


def _discs(size: tuple[float, float]) -> tuple[np.ndarray, float]:
    """Return the discs that cover a length x width footprint: positions [k] along x, and radius."""
    length, width = size
    small, large = min(length, width), max(length, width)
    count = max(1, int(np.ceil(large / small)))
    places = (np.arange(count) + 0.5) * (large / count) - large / 2
    radius = float(np.hypot(small / 2, large / count / 2))
    axis = np.zeros((count, 2))
    axis[:, 0 if length >= width else 1] = places
    return axis, radius


class _Tracks:
    """Accepted footprints over time, for collision checks."""

    def __init__(self, times: np.ndarray, world: StaticWorld) -> None:
        self.times, self.world = times, world
        self.blocked = world.grid[:, :, 1:12].any(2)
        self.centres = np.zeros((len(times), 0, 2))
        self.radii = np.zeros(0)

    def discs(
        self, motion: Motion, size: tuple[float, float], ahead: float = 0.0
    ) -> tuple[np.ndarray, np.ndarray]:
        """Return disc centres [T, k, 2] and radii [k] of an actor over time."""
        offsets, radius = _discs(size)
        offsets = offsets + np.array([ahead, 0.0])
        poses = np.array([motion.pose(float(t)) for t in self.times])
        cos, sin = np.cos(poses[:, 2, None]), np.sin(poses[:, 2, None])
        x = poses[:, :1] + offsets[:, 0] * cos - offsets[:, 1] * sin
        y = poses[:, 1:2] + offsets[:, 0] * sin + offsets[:, 1] * cos
        return np.stack([x, y], -1), np.full(len(offsets), radius)

    def fits(self, centres: np.ndarray, radii: np.ndarray) -> bool:
        """Return whether an actor avoids all accepted ones, the static world and the border."""
        if len(self.radii):
            gap = np.linalg.norm(centres[:, :, None] - self.centres[:, None], axis=-1)
            if (gap < radii[:, None] + self.radii + CLEARANCE_M).any():
                return False
        reach = float(radii[0]) * 0.8
        around = np.array([(0, 0), (reach, 0), (-reach, 0), (0, reach), (0, -reach)])
        cells = np.floor((centres[:, :, None] + around - self.world.lower) / VOXEL_M).astype(int)
        inside = (cells >= 0).all(-1) & (cells < self.blocked.shape).all(-1)
        cells = np.clip(cells, 0, np.array(self.blocked.shape) - 1)
        return not bool((self.blocked[cells[..., 0], cells[..., 1]] & inside).any())

    def accept(self, centres: np.ndarray, radii: np.ndarray) -> None:
        self.centres = np.concatenate([self.centres, centres], 1)
        self.radii = np.concatenate([self.radii, radii])


class _Placer:
    def __init__(
        self, layout: Layout, ground: Ground, world: StaticWorld, duration_s: float
    ) -> None:
        self.layout, self.ground, self.recipe = layout, ground, layout.recipe
        self.rng = np.random.default_rng([*layout.recipe.seed, 4])
        self.tracks = _Tracks(np.arange(-0.25, duration_s + 0.3, 0.25), world)
        self.tracks.accept(*self.tracks.discs(layout.ego, EGO_SIZE, EGO_CENTRE_AHEAD_M))
        self.actors: list[Actor] = []

    def put(self, kind: str, motion: Motion, *, parked: bool = False) -> bool:
        """Add an actor if it collides with nothing."""
        look = make_look(kind, self.rng)
        centres, radii = self.tracks.discs(motion, look.model.size[:2])
        if not self.tracks.fits(centres, radii):
            return False
        self.tracks.accept(centres, radii)
        name = f"{kind}-{len(self.actors)}"
        self.actors.append(
            Actor(
                name,
                look.category,
                look.model,
                motion,
                look.palette,
                look.gloss,
                parked,
                look.with_rider,
            )
        )
        return True

    def stand(self, kind: str, road: Road, s: float, d: float, turn: float = 0.0) -> bool:
        """Add a standing actor at road coordinates."""
        position, heading = road.line.at(s, d)
        return self.put(
            kind,
            standing(float(position[0]), float(position[1]), float(heading) + turn),
            parked=True,
        )

    # ------------------------------------------------------------------ vehicles
    def parking(self) -> None:
        """Place rows of parked vehicles along the curbs."""
        for road in self.layout.roads:
            spec = road.spec
            for sign, width, edge in (
                (1, spec.parking_left, spec.edge_left),
                (-1, spec.parking_right, spec.edge_right),
            ):
                if not width:
                    continue
                for s in np.arange(road.start_s + 2.86, road.stop_s, 5.6):
                    if self._near_junction(road, s, 9.0) or self.rng.random() > self.recipe.parked:
                        continue
                    kind = self.rng.choice(
                        ["car", "truck", "bus", "parked_motorcycle"], p=[0.9, 0.04, 0.02, 0.04]
                    )
                    turn = (np.pi if sign > 0 and spec.lanes_left else 0.0) + self.rng.normal(
                        0, 0.02
                    )
                    offset = edge - sign * (width / 2 + 0.2) + self.rng.normal(0, 0.08)
                    self.stand(str(kind), road, s + self.rng.normal(0, 0.25), offset, turn)

    def _near_junction(self, road: Road, s: float, margin: float) -> bool:
        for junction in self.layout.junctions:
            other = junction.road if road is self.layout.main else self.layout.main
            at = junction.s_main if road is self.layout.main else junction.s_cross
            if (road is self.layout.main or road is junction.road) and (
                abs(s - at) < max(other.spec.edge_left, -other.spec.edge_right) + margin
            ):
                return True
        return False

    def traffic(self) -> None:
        """Place moving vehicles on all lanes, and queues at junctions on the crossing roads."""
        kinds, weights = (
            ["car", "truck", "bus", "motorcycle", "bicycle"],
            [0.62, 0.14, 0.08, 0.09, 0.07],
        )
        ego_lane = self.layout.main.lane(self.recipe.ego.lane)
        for road in self.layout.roads:
            for lane in road.lanes:
                path = road.lane(lane)
                own = road is self.layout.main and lane == self.recipe.ego.lane
                speed = self.rng.uniform(5.0, 10.0)
                for s in np.arange(self.rng.uniform(0, 10), path.length, 15.0):
                    if self.rng.random() > self.recipe.traffic:
                        continue
                    kind = str(self.rng.choice(kinds, p=weights))
                    start = s + self.rng.normal(0, 1.5)
                    if road is not self.layout.main and self.recipe.ego.turn != "none":
                        self.put(kind, self._standing_on(path, start))
                    elif own:
                        self.put(kind, self._with_ego(ego_lane, start))
                    else:
                        self.put(kind, cruising(path, start, speed))
        if self.recipe.ego.turn != "none":
            self._queues()

    @staticmethod
    def _standing_on(path: Polyline, s: float) -> Motion:
        return cruising(path, s, 0.0)

    def _with_ego(self, lane: Polyline, s: float) -> Motion:
        """Drive like the ego vehicle, at a distance."""
        start = float(self.layout.ego.travelled(0.0))
        return Motion(lane, lambda t: s + float(self.layout.ego.travelled(t)) - start)

    def _queues(self) -> None:
        for junction in self.layout.junctions:
            wide = max(self.layout.main.spec.edge_left, -self.layout.main.spec.edge_right) + 9.0
            for lane in junction.road.lanes:
                path = junction.road.lane(lane)
                at = junction.s_cross if lane >= 0 else junction.road.line.length - junction.s_cross
                for k in range(3):
                    if self.rng.random() < 0.7:
                        kind = str(
                            self.rng.choice(
                                ["car", "truck", "bus", "motorcycle"], p=[0.7, 0.12, 0.08, 0.1]
                            )
                        )
                        self.put(kind, self._standing_on(path, at - wide - 2.5 - 7.5 * k))

    # ------------------------------------------------------------------ people and street life
    def _band(self, sign: int) -> tuple[float, float]:
        """Return the offsets of the inner and outer edge of the main road's sidewalk on a side.

        The sidewalk counts as at least 1.2 m wide.
        """
        spec = self.layout.side(sign)
        edge = self.layout.main.spec.edge_left if sign > 0 else -self.layout.main.spec.edge_right
        inner = edge + spec.verge + 0.5
        return inner, inner + max(spec.sidewalk, 1.2) - 0.6

    def people(self) -> None:
        """Place pedestrians on the sidewalks and cyclists on the road."""
        main, rng, crowd = self.layout.main, self.rng, self.recipe.crowd
        for _ in range(int(20 * crowd)):
            sign = int(rng.choice([-1, 1]))
            d = sign * rng.uniform(*self._band(sign))
            s = rng.uniform(EGO_START_S - 30, EGO_START_S + 95)
            direction = int(rng.choice([-1, 1]))
            speed = rng.uniform(0.8, 1.7) * (rng.random() < 0.75)
            path = main.line.offset(d)
            if direction < 0:
                path, s = Polyline(path.points[::-1]), main.line.length - s
            self.put("pedestrian", cruising(path, s, speed))
        for junction in self.layout.junctions:
            for _ in range(int(5 * crowd)):
                self._at_corner(junction.s_main, junction.road)
        for _ in range(int(6 * crowd)):
            self._cyclist()
        for _ in range(int(10 * crowd)):
            sign = int(rng.choice([-1, 1]))
            kind = str(rng.choice(["parked_bicycle", "parked_motorcycle"], p=[0.6, 0.4]))
            d = sign * (self._band(sign)[0] + rng.uniform(-0.1, 0.4))
            self.stand(
                kind,
                main,
                rng.uniform(EGO_START_S - 20, EGO_START_S + 70),
                d,
                rng.uniform(-0.4, 0.4),
            )

    def _at_corner(self, s: float, cross: Road) -> None:
        """Place a pedestrian waiting at or walking over the crossing of the main road."""
        main, rng = self.layout.main, self.rng
        side = int(rng.choice([-1, 1]))
        along = s + side * (cross.spec.edge_left + 5.0 + rng.uniform(-1, 1))
        start, stop = (
            main.line.at(along, d)[0]
            for d in (main.spec.edge_right - 1.5, main.spec.edge_left + 1.5)
        )
        if rng.random() < 0.5:
            start, stop = stop, start
        path = Polyline(np.stack([start, stop]))
        walked = rng.uniform(0, path.length * 0.8)
        speed = 1.3 * (rng.random() < 0.6)
        self.put("pedestrian", cruising(path, walked, speed))

    def _cyclist(self) -> None:
        main, rng = self.layout.main, self.rng
        sign = 1 if main.spec.lanes_left and rng.random() < 0.5 else -1
        edge = main.spec.edge_left if sign > 0 else main.spec.edge_right
        parking = main.spec.parking_left if sign > 0 else main.spec.parking_right
        d = edge - sign * (parking + 0.7)
        path = main.line.offset(d)
        s = rng.uniform(EGO_START_S - 25, EGO_START_S + 70)
        if sign > 0:
            path, s = Polyline(path.points[::-1]), main.line.length - s
        speed = rng.uniform(2.5, 5.5)
        kind = "bicycle" if rng.random() < 0.65 else "motorcycle"
        self.put(kind, cruising(path, s, speed))

    def roadworks(self) -> None:
        """Place a construction site: cones, barriers, a machine, workers and material."""
        main, rng, sign = self.layout.main, self.rng, self.recipe.construction_side
        edge = main.spec.edge_left if sign > 0 else main.spec.edge_right
        for centre in (EGO_START_S + rng.uniform(12, 30), EGO_START_S - rng.uniform(5, 18)):
            length = rng.uniform(14, 22)
            s0 = centre - length / 2
            for s in np.arange(s0, s0 + length, 2.2):
                self.stand("cone", main, s, edge - sign * rng.uniform(0.3, 0.5), rng.uniform(0, 6))
            for s in np.arange(s0 + 1, s0 + length, 2.7):
                self.stand("barrier", main, s, edge + sign * 0.7, np.pi / 2 + rng.normal(0, 0.05))
            for _ in range(12):
                if self.stand(
                    "construction",
                    main,
                    s0 + rng.uniform(2, length),
                    edge + sign * rng.uniform(2.9, 5.5),
                    rng.uniform(-0.5, 0.5),
                ):
                    break
            for kind in ("worker", "worker", "other", "other", "cone", "cone"):
                self.stand(
                    kind,
                    main,
                    s0 + rng.uniform(0, length),
                    edge + sign * rng.uniform(1.5, 5.5),
                    rng.uniform(0, 6),
                )
            sign = -sign
            edge = main.spec.edge_left if sign > 0 else main.spec.edge_right

    def clutter(self) -> None:
        """Place bins, trolleys and pallets near houses, barriers and cones in rows elsewhere."""
        main, rng = self.layout.main, self.rng
        for _ in range(26):
            sign = int(rng.choice([-1, 1]))
            d = sign * (self._band(sign)[1] + rng.uniform(-0.3, 0.5))
            self.stand(
                "other",
                main,
                rng.uniform(EGO_START_S - 35, EGO_START_S + 90),
                d,
                rng.uniform(-0.3, 0.3),
            )
        for kind, step, count in (
            ("barrier", 2.6, 5),
            ("cone", 2.0, 6),
            ("barrier", 2.6, 4),
            ("cone", 1.6, 5),
        ):
            sign = int(rng.choice([-1, 1]))
            s = rng.uniform(EGO_START_S - 25, EGO_START_S + 60)
            d = sign * (self._band(sign)[0] - 0.1)
            for k in range(count):
                self.stand(kind, main, s + k * step, d, np.pi / 2 if kind == "barrier" else 0.0)

    def large_vehicles(self) -> None:
        """Ensure that every kind of large vehicle is near the ego path, off the road if needed."""
        main, rng = self.layout.main, self.rng
        wanted = [
            "trailer",
            "truck",
            "bus",
            "trailer",
            "truck",
            "car",
            "car",
            "bus",
            "trailer",
            "truck",
            "car",
        ]
        for kind in wanted:
            for _ in range(25):
                sign = int(rng.choice([-1, 1]))
                parking = main.spec.parking_left if sign > 0 else main.spec.parking_right
                edge = main.spec.edge_left if sign > 0 else -main.spec.edge_right
                at_curb = parking > 0 and rng.random() < 0.5
                d = edge - 1.4 if at_curb else self._band(sign)[1] + rng.uniform(1.2, 7.0)
                turn = rng.choice([0.0, np.pi]) + (
                    0.0 if at_curb else rng.choice([0.0, 0.0, 0.5, np.pi / 2])
                )
                s = EGO_START_S + rng.uniform(-25, 60)
                if not self._near_junction(main, s, 6.0) and self.stand(
                    kind, main, s, sign * d, float(turn)
                ):
                    break


def place_actors(
    layout: Layout, ground: Ground, world: StaticWorld, duration_s: float
) -> list[Actor]:
    """Return all actors of a scene in a fixed order.

    None touches another, the ego vehicle or the static world.
    """
    placer = _Placer(layout, ground, world, duration_s)
    placer.roadworks()
    placer.large_vehicles()
    placer.traffic()
    placer.parking()
    placer.clutter()
    placer.people()
    return placer.actors
