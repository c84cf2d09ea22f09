"""Actors, which move or could move: their models, colours, tracks and annotation categories."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
from numpy.typing import ArrayLike

from scripts.toy_nuscenes import props, vehicles
from scripts.toy_nuscenes.classes import CATEGORY_TO_OCC, Occ
from scripts.toy_nuscenes.paths import Motion
from scripts.toy_nuscenes.shapes import Mat, Model

_T = TypeVar("_T")

_FIXED = {
    Mat.GLASS: (0.035, 0.045, 0.055),
    Mat.TYRE: (0.025, 0.025, 0.027),
    Mat.RIM: (0.42, 0.43, 0.45),
    Mat.HEADLIGHT: (0.92, 0.92, 0.86),
    Mat.TAILLIGHT: (0.50, 0.02, 0.02),
    Mat.TRIM: (0.035, 0.035, 0.04),
    Mat.METAL: (0.32, 0.33, 0.35),
    Mat.PLATE: (0.75, 0.75, 0.70),
    Mat.SKIN: (0.50, 0.33, 0.25),
    Mat.HAIR: (0.06, 0.04, 0.03),
    Mat.ORANGE: (0.82, 0.22, 0.02),
    Mat.WHITE: (0.82, 0.82, 0.80),
    Mat.RED: (0.66, 0.03, 0.03),
    Mat.YELLOW: (0.78, 0.46, 0.03),
    Mat.WOOD: (0.42, 0.29, 0.16),
    Mat.TRACK: (0.10, 0.085, 0.07),
}
_CAR_PAINT = (
    (0.78, 0.78, 0.77),
    (0.03, 0.03, 0.035),
    (0.22, 0.23, 0.24),
    (0.50, 0.51, 0.52),
    (0.04, 0.09, 0.28),
    (0.45, 0.03, 0.03),
    (0.10, 0.22, 0.35),
    (0.05, 0.14, 0.09),
    (0.55, 0.47, 0.34),
    (0.70, 0.30, 0.04),
    (0.32, 0.08, 0.10),
    (0.62, 0.62, 0.60),
)
_BUS_PAINT = (
    ((0.72, 0.48, 0.04), (0.08, 0.08, 0.08)),
    ((0.75, 0.75, 0.74), (0.05, 0.20, 0.55)),
    ((0.55, 0.04, 0.05), (0.75, 0.72, 0.68)),
    ((0.08, 0.35, 0.22), (0.80, 0.80, 0.75)),
)
_BOX_PAINT = (
    (0.80, 0.80, 0.78),
    (0.66, 0.67, 0.68),
    (0.10, 0.22, 0.50),
    (0.55, 0.10, 0.06),
    (0.10, 0.32, 0.20),
)
_CLOTHES = (
    (0.55, 0.06, 0.06),
    (0.06, 0.12, 0.40),
    (0.04, 0.04, 0.05),
    (0.72, 0.70, 0.66),
    (0.10, 0.34, 0.16),
    (0.62, 0.45, 0.08),
    (0.30, 0.12, 0.36),
    (0.35, 0.36, 0.38),
    (0.08, 0.36, 0.42),
    (0.70, 0.32, 0.38),
)
_TROUSERS = (
    (0.05, 0.07, 0.14),
    (0.03, 0.03, 0.035),
    (0.25, 0.20, 0.14),
    (0.15, 0.18, 0.26),
    (0.30, 0.30, 0.30),
)


@dataclass(frozen=True)
class Actor:
    """Actor with a track.

    palette: float32 [21, 3], RGB reflectance by `Mat`. gloss: specular reflection of PAINT, 0 to 1.
    """

    name: str
    category: str
    model: Model
    motion: Motion
    palette: np.ndarray
    gloss: float = 0.0
    parked: bool = False
    with_rider: bool = False

    @property
    def occ(self) -> Occ:
        """Occ3D class."""
        return CATEGORY_TO_OCC[self.category]

    def attribute(self, time_s: float) -> str | None:
        """Return the name of the nuScenes attribute at a time."""
        moving = self.motion.speed(time_s) > 0.2
        if self.category in ("vehicle.bicycle", "vehicle.motorcycle"):
            return "cycle.with_rider" if self.with_rider else "cycle.without_rider"
        if self.category.startswith("vehicle."):
            return (
                "vehicle.moving"
                if moving
                else ("vehicle.parked" if self.parked else "vehicle.stopped")
            )
        if self.category.startswith("human."):
            return "pedestrian.moving" if moving else "pedestrian.standing"
        return None


@dataclass(frozen=True)
class Look:
    """Appearance of an actor, independent of its position."""

    category: str
    model: Model
    palette: np.ndarray
    gloss: float = 0.0
    with_rider: bool = False


def _palette(**colours: ArrayLike) -> np.ndarray:
    palette = np.full((len(Mat), 3), 0.4, np.float32)
    for mat, colour in _FIXED.items():
        palette[mat] = colour
    for name, value in colours.items():
        palette[Mat[name]] = value
    return palette


def _pick(rng: np.random.Generator, options: Sequence[_T]) -> _T:
    return options[int(rng.integers(len(options)))]


def _vary(rng: np.random.Generator, colour: ArrayLike) -> np.ndarray:
    return np.clip(
        np.asarray(colour) * rng.uniform(0.8, 1.2) * rng.uniform(0.93, 1.07, 3), 0.01, 0.95
    )


def _skin(rng: np.random.Generator) -> dict[str, np.ndarray]:
    tone = rng.uniform(0.25, 1.15)
    hair = _pick(
        rng, ((0.03, 0.025, 0.02), (0.12, 0.07, 0.04), (0.30, 0.20, 0.09), (0.35, 0.34, 0.33))
    )
    return dict(
        SKIN=np.array([0.52, 0.34, 0.25]) * tone,
        HAIR=np.array(hair),
        TOP=_vary(rng, _pick(rng, _CLOTHES)),
        LEGS=_vary(rng, _pick(rng, _TROUSERS)),
    )


def make_look(kind: str, rng: np.random.Generator) -> Look:
    """Return a random appearance of a kind of actor.

    Args:
        kind: car, bus, truck, trailer, construction, motorcycle, bicycle, parked_motorcycle,
            parked_bicycle, pedestrian, worker, cone, barrier or other.
        rng: source of randomness.
    """
    if kind == "car":
        return Look(
            "vehicle.car",
            _pick(rng, vehicles.cars()),
            _palette(PAINT=_vary(rng, _pick(rng, _CAR_PAINT))),
            0.7,
        )
    if kind == "bus":
        paint, stripe = _pick(rng, _BUS_PAINT)
        return Look(
            "vehicle.bus.rigid",
            _pick(rng, vehicles.buses()),
            _palette(PAINT=_vary(rng, paint), PAINT2=stripe),
            0.5,
        )
    if kind in ("truck", "trailer"):
        colours = _palette(
            PAINT=_vary(rng, _pick(rng, _CAR_PAINT)), PAINT2=_vary(rng, _pick(rng, _BOX_PAINT))
        )
        models = vehicles.trucks() if kind == "truck" else vehicles.trailers()
        return Look(f"vehicle.{kind}", _pick(rng, models), colours, 0.3)
    if kind == "construction":
        yellow = _vary(rng, _pick(rng, ((0.80, 0.48, 0.03), (0.78, 0.30, 0.03))))
        return Look(
            "vehicle.construction",
            _pick(rng, vehicles.construction_vehicles()),
            _palette(YELLOW=yellow),
            0.2,
        )
    return _small_look(kind, rng)


def _small_look(kind: str, rng: np.random.Generator) -> Look:
    if kind.endswith("cycle"):
        rider = not kind.startswith("parked_")
        name = kind.removeprefix("parked_")
        models = props.motorcycles() if name == "motorcycle" else props.bicycles()
        palette = _palette(PAINT=_vary(rng, _pick(rng, _CAR_PAINT)), **_skin(rng))
        if rider and name == "motorcycle":
            palette[Mat.HAIR] = _vary(rng, _pick(rng, _CAR_PAINT))  # a helmet
        return Look(f"vehicle.{name}", models[0 if rider else 1], palette, 0.3, rider)
    if kind == "pedestrian":
        index = int(rng.integers(4))
        category = "human.pedestrian.child" if index == 3 else "human.pedestrian.adult"
        return Look(category, props.pedestrians()[index], _palette(**_skin(rng)))
    if kind == "worker":
        worker = _skin(rng) | dict(
            TOP=(0.85, 0.45, 0.03), HAIR=(0.85, 0.70, 0.05), LEGS=(0.70, 0.30, 0.03)
        )
        return Look(
            "human.pedestrian.construction_worker", props.pedestrians()[2], _palette(**worker)
        )
    if kind == "cone":
        return Look("movable_object.trafficcone", _pick(rng, props.cones()), _palette())
    if kind == "barrier":
        red = _pick(rng, ((0.66, 0.03, 0.03), (0.72, 0.22, 0.03)))
        return Look(
            "movable_object.barrier", _pick(rng, props.barriers()), _palette(RED=_vary(rng, red))
        )
    if kind == "other":
        index = int(rng.choice(4, p=[0.45, 0.25, 0.2, 0.1]))
        colours = _palette(
            PAINT=_vary(
                rng, _pick(rng, ((0.06, 0.22, 0.10), (0.08, 0.12, 0.30), (0.30, 0.22, 0.13)))
            ),
            PAINT2=_vary(rng, (0.45, 0.34, 0.20)),
        )
        category = "movable_object.debris" if index == 3 else "movable_object.pushable_pullable"
        return Look(category, props.others()[index], colours)
    raise ValueError(
        f"{kind!r} is not a kind of actor; see the docstring of make_look for the names"
    )
