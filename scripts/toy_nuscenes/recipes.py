"""Recipes of scenes: ten manually designed characters with randomly drawn details.

The characters differ in the properties that a model must infer from the images: road width and
curvature, junction arms, distance and height of roadside objects, parked rows, the ego lane. An
average scene is therefore a weak prediction.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

EGO_START_S = 80.0
"""Arc length on the main road where the ego vehicle starts; there is road behind it."""


@dataclass(frozen=True)
class RoadSpec:
    """Cross section of a road, seen along its direction; traffic keeps right."""

    lanes_left: int
    lanes_right: int
    lane_width: float
    median: float = 0.0
    parking_left: float = 0.0
    parking_right: float = 0.0

    @property
    def edge_left(self) -> float:
        """Lateral offset of the left curb."""
        return self.median / 2 + self.lanes_left * self.lane_width + self.parking_left + 0.3

    @property
    def edge_right(self) -> float:
        """Lateral offset of the right curb (negative)."""
        return -(self.median / 2 + self.lanes_right * self.lane_width + self.parking_right + 0.3)

    def lane_offset(self, lane: int) -> float:
        """Return the lateral offset of a lane's centre.

        Lanes 0, 1, ... are to the right of the middle; -1, -2, ... are to its left.
        """
        if lane >= 0:
            return -(self.median / 2 + (lane + 0.5) * self.lane_width)
        return self.median / 2 + (-lane - 0.5) * self.lane_width


@dataclass(frozen=True)
class SideSpec:
    """Area next to the road on one side, from the curb outwards."""

    verge: float
    sidewalk: float
    setback: float
    style: str  # house, apartment, office, shop, warehouse or none
    front: str  # ground in front of the buildings: lawn, paved or yard
    height: tuple[float, float] = (6.0, 12.0)
    gap: tuple[float, float] = (1.0, 6.0)
    verge_tree_spacing: float = 0.0
    front_tree_density: float = 0.0  # trees per 100 m2 between sidewalk and buildings and beyond
    fence: str = "none"  # none, hedge, wall, fence


@dataclass(frozen=True)
class JunctionSpec:
    """A crossing road."""

    s: float  # position on the main road
    arms: str  # left, right or both
    angle: float  # radians between the main road's direction and the left arm
    road: RoadSpec


@dataclass(frozen=True)
class EgoSpec:
    """Motion of the ego vehicle."""

    lane: int
    speed: float
    acceleration: float = 0.0
    turn: str = "none"  # none, left or right at the first junction
    weave: float = 0.0  # amplitude of a slow sideways drift, metres
    bias: float = 0.0  # constant offset from the lane centre, metres


@dataclass(frozen=True)
class Recipe:
    """Properties that distinguish a scene from the others."""

    kind: str
    pieces: tuple[tuple[float, float], ...]
    heading: float
    road: RoadSpec
    left: SideSpec
    right: SideSpec
    junctions: tuple[JunctionSpec, ...]
    ego: EgoSpec
    light: str
    construction_side: int  # +1 left, -1 right
    crowd: float  # multiplies the number of people and cycles
    traffic: float  # probability that a lane slot has a vehicle
    parked: float  # probability that a parking slot is taken
    seed: tuple[int, ...] = field(default=())


def _side(rng: np.random.Generator, style: str, **changes: object) -> SideSpec:
    """Return a side with the properties of a building style, some of them replaced."""
    base = {
        "house": dict(
            verge=rng.uniform(0, 2.5),
            sidewalk=rng.uniform(1.5, 2.2),
            setback=rng.uniform(3, 9),
            front="lawn",
            height=(4.5, 7.0),
            gap=(3.0, 9.0),
            front_tree_density=rng.uniform(0.5, 1.2),
        ),
        "apartment": dict(
            verge=rng.uniform(0, 1.8),
            sidewalk=rng.uniform(2.2, 4.0),
            setback=rng.uniform(0.5, 6),
            front="lawn",
            height=(9.0, 15.8),
            gap=(1.0, 7.0),
            front_tree_density=0.4,
        ),
        "office": dict(
            verge=0.0,
            sidewalk=rng.uniform(3.0, 5.5),
            setback=rng.uniform(0.5, 8),
            front="paved",
            height=(11.0, 15.9),
            gap=(2.0, 10.0),
        ),
        "shop": dict(
            verge=0.0,
            sidewalk=rng.uniform(2.5, 4.5),
            setback=rng.uniform(0.2, 1.5),
            front="paved",
            height=(5.0, 10.0),
            gap=(0.0, 3.0),
        ),
        "warehouse": dict(
            verge=rng.uniform(0, 1.5),
            sidewalk=rng.uniform(0.0, 1.8),
            setback=rng.uniform(6, 14),
            front="yard",
            height=(5.0, 9.0),
            gap=(4.0, 14.0),
        ),
        "none": dict(
            verge=rng.uniform(0.5, 2.5),
            sidewalk=rng.uniform(0.0, 2.2),
            setback=6.0,
            front="lawn",
            front_tree_density=rng.uniform(1.2, 2.4),
        ),
    }[style]
    return SideSpec(style=style, **{**base, **changes})  # type: ignore[arg-type]


def _avenue(rng: np.random.Generator) -> dict:
    return dict(
        pieces=((300.0, rng.uniform(-0.0015, 0.0015)),),
        road=RoadSpec(2, 2, 3.4, median=rng.uniform(2.2, 4.0), parking_right=2.3),
        left=_side(rng, "office", verge_tree_spacing=12.0, verge=1.6),
        right=_side(rng, "apartment", verge_tree_spacing=9.0, verge=1.8),
        junctions=(JunctionSpec(150.0, "both", 1.5, RoadSpec(1, 1, 3.4)),),
        ego=EgoSpec(1, 9.0, weave=0.3),
        light="clear",
        construction_side=-1,
        crowd=1.3,
        traffic=0.5,
        parked=0.7,
    )


def _residential(rng: np.random.Generator) -> dict:
    kappa = rng.choice([-1, 1]) * rng.uniform(0.008, 0.014)
    return dict(
        pieces=((70.0, 0.0), (110.0, kappa), (130.0, -kappa / 2)),
        road=RoadSpec(1, 1, 2.9, parking_left=2.1, parking_right=2.1),
        left=_side(rng, "house", fence="hedge"),
        right=_side(rng, "house", verge=2.2, verge_tree_spacing=9.0),
        junctions=(),
        ego=EgoSpec(0, 7.0, bias=0.2),
        light="afternoon",
        construction_side=1,
        crowd=0.9,
        traffic=0.3,
        parked=0.75,
    )


def _crossing_right(rng: np.random.Generator) -> dict:
    return dict(
        pieces=((300.0, 0.0),),
        road=RoadSpec(1, 1, 3.4, parking_left=2.2),
        left=_side(rng, "shop"),
        right=_side(rng, "apartment", setback=rng.uniform(2, 4)),
        junctions=(JunctionSpec(106.0, "both", 1.62, RoadSpec(1, 1, 3.3, parking_left=2.2)),),
        ego=EgoSpec(0, 7.0, turn="right"),
        light="overcast",
        construction_side=1,
        crowd=1.4,
        traffic=0.45,
        parked=0.8,
    )


def _crossing_left(rng: np.random.Generator) -> dict:
    return dict(
        pieces=((300.0, 0.0),),
        road=RoadSpec(2, 2, 3.2),
        left=_side(rng, "apartment", height=(8.0, 12.0)),
        right=_side(rng, "office"),
        junctions=(JunctionSpec(108.0, "both", 1.45, RoadSpec(2, 1, 3.3)),),
        ego=EgoSpec(0, 7.5, turn="left"),
        light="clear",
        construction_side=-1,
        crowd=1.2,
        traffic=0.5,
        parked=0.0,
    )


def _parkway(rng: np.random.Generator) -> dict:
    return dict(
        pieces=((60.0, 0.004), (60.0, 0.012), (80.0, -0.013), (90.0, 0.006)),
        road=RoadSpec(1, 1, 3.5),
        left=_side(rng, "none"),
        right=_side(rng, "house", setback=10.0, gap=(8.0, 18.0), fence="wall"),
        junctions=(),
        ego=EgoSpec(0, 10.5, weave=0.25),
        light="morning",
        construction_side=1,
        crowd=0.8,
        traffic=0.4,
        parked=0.0,
    )


def _industrial(rng: np.random.Generator) -> dict:
    return dict(
        pieces=((300.0, rng.uniform(-0.003, 0.003)),),
        road=RoadSpec(1, 1, 3.9, parking_right=2.8),
        left=_side(rng, "warehouse", fence="fence"),
        right=_side(rng, "warehouse", sidewalk=1.6, setback=9.0),
        junctions=(JunctionSpec(160.0, "left", 1.57, RoadSpec(1, 1, 3.6)),),
        ego=EgoSpec(0, 8.0, bias=-0.25),
        light="haze",
        construction_side=-1,
        crowd=0.7,
        traffic=0.5,
        parked=0.6,
    )


def _tee(rng: np.random.Generator) -> dict:
    return dict(
        pieces=((120.0, 0.003), (160.0, -0.005)),
        road=RoadSpec(0, 2, 3.3, parking_left=2.3, parking_right=2.3),
        left=_side(rng, "shop"),
        right=_side(rng, "shop", height=(8.0, 14.0)),
        junctions=(JunctionSpec(112.0, "left", 1.6, RoadSpec(1, 1, 3.2)),),
        ego=EgoSpec(1, 6.5, acceleration=0.5),
        light="clear",
        construction_side=1,
        crowd=1.6,
        traffic=0.4,
        parked=0.8,
    )


def _boulevard(rng: np.random.Generator) -> dict:
    kappa = rng.choice([-1, 1]) * rng.uniform(0.006, 0.010)
    return dict(
        pieces=((80.0, 0.0), (200.0, kappa)),
        road=RoadSpec(2, 3, 3.3, median=1.2),
        left=_side(rng, "none", front_tree_density=1.0, verge_tree_spacing=8.0),
        right=_side(rng, "office", setback=9.0, front="lawn", front_tree_density=0.7),
        junctions=(JunctionSpec(165.0, "right", 1.57, RoadSpec(1, 1, 3.4)),),
        ego=EgoSpec(2, 10.0),
        light="afternoon",
        construction_side=1,
        crowd=0.9,
        traffic=0.5,
        parked=0.0,
    )


def _village(rng: np.random.Generator) -> dict:
    return dict(
        pieces=((90.0, 0.002), (150.0, -0.006)),
        road=RoadSpec(1, 1, 3.1, parking_right=2.1),
        left=_side(rng, "house", fence="wall", verge=0.0),
        right=_side(rng, "shop", setback=2.5),
        junctions=(JunctionSpec(104.0, "both", 1.5, RoadSpec(1, 1, 3.1)),),
        ego=EgoSpec(0, 6.5, turn="right"),
        light="clear",
        construction_side=1,
        crowd=1.2,
        traffic=0.4,
        parked=0.7,
    )


def _arterial(rng: np.random.Generator) -> dict:
    return dict(
        pieces=((85.0, 0.0), (70.0, 0.008), (120.0, 0.0)),
        road=RoadSpec(2, 2, 3.3, median=2.0, parking_left=2.3),
        left=_side(rng, "apartment", setback=4.0),
        right=_side(rng, "warehouse", setback=7.0, sidewalk=2.0),
        junctions=(JunctionSpec(158.0, "both", 1.57, RoadSpec(1, 1, 3.5)),),
        ego=EgoSpec(0, 8.5, weave=0.2),
        light="overcast",
        construction_side=-1,
        crowd=1.0,
        traffic=0.5,
        parked=0.7,
    )


_CHARACTERS = (
    _avenue,
    _residential,
    _crossing_right,
    _crossing_left,
    _parkway,
    _industrial,
    _tee,
    _boulevard,
    _village,
    _arterial,
)
_LIGHTS = ("clear", "afternoon", "overcast", "morning", "haze")


def make_recipe(seed: int, index: int) -> Recipe:
    """Return the recipe of scene number `index`.

    The ten characters repeat with other details and light.
    """
    rng = np.random.default_rng([seed, index, 1])
    character = _CHARACTERS[index % len(_CHARACTERS)]
    fields = character(rng)
    if index >= len(_CHARACTERS):
        fields["light"] = str(rng.choice(_LIGHTS))
        fields["construction_side"] = int(rng.choice([-1, 1]))
    heading = float(rng.uniform(-np.pi, np.pi))
    return Recipe(kind=character.__name__.strip("_"), heading=heading, seed=(seed, index), **fields)
