"""Plan of a scene: roads, lanes, ego path and extent of the world, in scene metres (x, y)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from scripts.toy_nuscenes.paths import Motion, Polyline, curve, join
from scripts.toy_nuscenes.recipes import (
    EGO_START_S,
    EgoSpec,
    JunctionSpec,
    Recipe,
    RoadSpec,
    SideSpec,
)

MARGIN_M = 76.0
"""Margin of the world around the ego path; labels need 51.2 m times the square root of two."""

ARM_LENGTH_M = 130.0


@dataclass(frozen=True)
class Road:
    """Road: its centre line and cross section; `start_s` and `stop_s` bound the paved part."""

    line: Polyline
    spec: RoadSpec
    start_s: float
    stop_s: float

    def outline(self) -> np.ndarray:
        """Return the outline [n, 2] of the paved surface."""
        return self.line.strip(self.spec.edge_right, self.spec.edge_left, self.start_s, self.stop_s)

    def lane(self, lane: int) -> Polyline:
        """Return a lane's centre line in driving direction (see `RoadSpec.lane_offset`)."""
        centre = self.line.offset(self.spec.lane_offset(lane))
        return centre if lane >= 0 else Polyline(centre.points[::-1])

    @property
    def lanes(self) -> list[int]:
        """All lane numbers."""
        return [*range(self.spec.lanes_right), *(-1 - k for k in range(self.spec.lanes_left))]


@dataclass(frozen=True)
class Junction:
    """Crossing: its position on the main road, and the crossing road."""

    spec: JunctionSpec
    road: Road
    s_main: float
    s_cross: float


@dataclass(frozen=True)
class Layout:
    """Plan of a scene. `lower` and `upper` [2] are the corners of the world in scene metres."""

    recipe: Recipe
    main: Road
    junctions: tuple[Junction, ...]
    ego: Motion
    lower: np.ndarray
    upper: np.ndarray

    @property
    def roads(self) -> list[Road]:
        """The main road and the crossing ones."""
        return [self.main, *(junction.road for junction in self.junctions)]

    def side(self, sign: int) -> SideSpec:
        """Return the left (+1) or right (-1) side of the main road."""
        return self.recipe.left if sign > 0 else self.recipe.right


def _cross_road(main: Polyline, spec: JunctionSpec) -> Junction:
    centre, heading = main.at(spec.s)
    angle = float(heading) + spec.angle
    direction = np.array([np.cos(angle), np.sin(angle)])
    low = -ARM_LENGTH_M if spec.arms in ("both", "right") else 0.0
    high = ARM_LENGTH_M if spec.arms in ("both", "left") else 0.0
    along = np.arange(low, high + 1e-6, 1.0)[:, None]
    line = Polyline(centre + along * direction)
    return Junction(spec, Road(line, spec.road, 0.0, line.length), spec.s, -low)


def _ego_path(main: Road, junctions: tuple[Junction, ...], ego: EgoSpec) -> tuple[Polyline, float]:
    """Return the path of the ego vehicle and the arc length of its start."""
    lane = main.lane(ego.lane)
    start = float(lane.nearest(main.line.at(EGO_START_S)[0][None])[0][0])
    if ego.turn == "none":
        return lane, start
    junction = junctions[0]
    cross = junction.road
    # A left turn enters the cross road along its direction (to the left), a right turn against it.
    exit_lane = cross.lane(0) if ego.turn == "left" else cross.lane(-1)
    corner = main.line.at(junction.s_main)[0][None]
    s_in = float(lane.nearest(corner)[0][0])
    s_out = float(exit_lane.nearest(corner)[0][0])
    reach = 9.0 if ego.turn == "right" else 11.0
    before = lane.offset(0.0, 0.0, s_in - reach).points
    after = exit_lane.offset(0.0, s_out + reach, exit_lane.length).points
    return join(before, after), start


def _ego_motion(path: Polyline, start: float, ego: EgoSpec) -> Motion:
    def travelled(time_s: float) -> float:
        return start + ego.speed * time_s + 0.5 * ego.acceleration * time_s**2

    def lateral(time_s: float) -> float:
        return ego.bias + ego.weave * float(np.sin(0.9 * time_s))

    return Motion(path, travelled, lateral)


def make_layout(recipe: Recipe, duration_s: float) -> Layout:
    """Lay out the scene of a recipe so that the ego vehicle can drive for `duration_s` seconds."""
    extra = max(0.0, recipe.ego.speed * duration_s - 60.0)
    pieces = (*recipe.pieces, (extra + 60.0, 0.0))
    line = curve((0.0, 0.0), recipe.heading, pieces)
    main = Road(line, recipe.road, 0.0, line.length)
    junctions = tuple(_cross_road(line, spec) for spec in recipe.junctions)
    ego = _ego_motion(*_ego_path(main, junctions, recipe.ego), recipe.ego)
    track = np.array([ego.pose(t)[:2] for t in np.linspace(-0.1, duration_s, 60)])
    lower = np.floor(track.min(0) - MARGIN_M)
    upper = np.ceil(track.max(0) + MARGIN_M)
    return Layout(recipe, main, junctions, ego, lower, upper)
