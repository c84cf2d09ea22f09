"""Semantic classes of Occ3D-nuScenes and how nuScenes categories map to them."""

from __future__ import annotations

from enum import IntEnum
from typing import NamedTuple


class Occ(IntEnum):
    """Occ3D-nuScenes classes (arXiv 2304.14365). 0 to 16 are occupied, `FREE` is empty space."""

    OTHERS = 0
    BARRIER = 1
    BICYCLE = 2
    BUS = 3
    CAR = 4
    CONSTRUCTION_VEHICLE = 5
    MOTORCYCLE = 6
    PEDESTRIAN = 7
    TRAFFIC_CONE = 8
    TRAILER = 9
    TRUCK = 10
    DRIVEABLE_SURFACE = 11
    OTHER_FLAT = 12
    SIDEWALK = 13
    TERRAIN = 14
    MANMADE = 15
    VEGETATION = 16
    FREE = 17


FLAT = (Occ.DRIVEABLE_SURFACE, Occ.OTHER_FLAT, Occ.SIDEWALK, Occ.TERRAIN)

# If fine voxels of different classes fall into one label voxel, the last class in this list is
# used: a pedestrian of two fine voxels must not vanish in the pavement below.
LABEL_PRIORITY = (
    Occ.FREE,
    Occ.TERRAIN,
    Occ.SIDEWALK,
    Occ.OTHER_FLAT,
    Occ.DRIVEABLE_SURFACE,
    Occ.VEGETATION,
    Occ.MANMADE,
    Occ.OTHERS,
    Occ.TRAILER,
    Occ.TRUCK,
    Occ.BUS,
    Occ.CONSTRUCTION_VEHICLE,
    Occ.CAR,
    Occ.BARRIER,
    Occ.MOTORCYCLE,
    Occ.BICYCLE,
    Occ.PEDESTRIAN,
    Occ.TRAFFIC_CONE,
)


class Category(NamedTuple):
    """A nuScenes object category."""

    name: str
    description: str


CATEGORIES: tuple[Category, ...] = (
    Category("human.pedestrian.adult", "Adult subcategory."),
    Category("human.pedestrian.child", "Child subcategory."),
    Category("human.pedestrian.wheelchair", "Wheelchairs."),
    Category("human.pedestrian.stroller", "Strollers."),
    Category("human.pedestrian.personal_mobility", "A small electric or self-propelled vehicle."),
    Category("human.pedestrian.police_officer", "Police officer."),
    Category("human.pedestrian.construction_worker", "Construction worker."),
    Category("animal", "All animals."),
    Category("vehicle.car", "Vehicle designed primarily for personal use."),
    Category("vehicle.motorcycle", "Gasoline or electric powered two-wheeled vehicle."),
    Category("vehicle.bicycle", "Human or electric powered two-wheeled vehicle."),
    Category("vehicle.bus.bendy", "Bendy bus subcategory."),
    Category("vehicle.bus.rigid", "Rigid bus subcategory."),
    Category("vehicle.truck", "Vehicles primarily designed to haul cargo."),
    Category("vehicle.construction", "Vehicles primarily designed for construction."),
    Category("vehicle.emergency.ambulance", "All types of ambulances."),
    Category("vehicle.emergency.police", "All types of police vehicles."),
    Category("vehicle.trailer", "Any vehicle trailer."),
    Category("movable_object.barrier", "Temporary road barrier."),
    Category("movable_object.trafficcone", "All types of traffic cone."),
    Category("movable_object.pushable_pullable", "Objects that a pedestrian may push or pull."),
    Category("movable_object.debris", "Movable object that is left on the driveable surface."),
    Category("static_object.bicycle_rack", "Area or device intended to park bicycles."),
)

ATTRIBUTES: tuple[Category, ...] = (
    Category("vehicle.moving", "Vehicle is moving."),
    Category("vehicle.stopped", "Vehicle, with a driver, is stationary but has an intent to move."),
    Category("vehicle.parked", "Vehicle is stationary with no intent to move."),
    Category("cycle.with_rider", "There is a rider on the cycle."),
    Category("cycle.without_rider", "There is no rider on the cycle."),
    Category("pedestrian.sitting_lying_down", "The human is sitting or lying down."),
    Category("pedestrian.standing", "The human is standing."),
    Category("pedestrian.moving", "The human is moving."),
)

VISIBILITIES: tuple[tuple[str, str, str], ...] = (
    ("1", "v0-40", "Visibility of whole object is between 0 and 40%."),
    ("2", "v40-60", "Visibility of whole object is between 40 and 60%."),
    ("3", "v60-80", "Visibility of whole object is between 60 and 80%."),
    ("4", "v80-100", "Visibility of whole object is between 80 and 100%."),
)

CATEGORY_TO_OCC: dict[str, Occ] = {
    "human.pedestrian.adult": Occ.PEDESTRIAN,
    "human.pedestrian.child": Occ.PEDESTRIAN,
    "human.pedestrian.construction_worker": Occ.PEDESTRIAN,
    "vehicle.car": Occ.CAR,
    "vehicle.motorcycle": Occ.MOTORCYCLE,
    "vehicle.bicycle": Occ.BICYCLE,
    "vehicle.bus.rigid": Occ.BUS,
    "vehicle.truck": Occ.TRUCK,
    "vehicle.construction": Occ.CONSTRUCTION_VEHICLE,
    "vehicle.trailer": Occ.TRAILER,
    "movable_object.barrier": Occ.BARRIER,
    "movable_object.trafficcone": Occ.TRAFFIC_CONE,
    "movable_object.pushable_pullable": Occ.OTHERS,
    "movable_object.debris": Occ.OTHERS,
}
"""Categories that the generator uses, with their Occ3D class."""
