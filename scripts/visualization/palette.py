"""Colours: one table of class styles, the difference classes, and the themes of a sheet."""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum
from functools import cache

import cv2
import numpy as np
from numpy.typing import NDArray

from scripts.runtime.errors import ConfigError

RGB = tuple[int, int, int]

# Colours of nuScenes' own categories (nuscenes-devkit, `nuscenes.utils.color_map`). An occupancy
# class that merges several categories has the colour of the most frequent one: pedestrian =
# human.pedestrian.adult, bus = vehicle.bus.bendy (the bus colour of the lidarseg figures; bus.rigid
# is hard to distinguish from truck), others = noise.
CLASS_COLOURS: dict[str, RGB] = {
    "others": (0, 0, 0),
    "barrier": (112, 128, 144),
    "bicycle": (220, 20, 60),
    "bus": (255, 127, 80),
    "car": (255, 158, 0),
    "construction_vehicle": (233, 150, 70),
    "motorcycle": (255, 61, 99),
    "pedestrian": (0, 0, 230),
    "traffic_cone": (47, 79, 79),
    "trailer": (255, 140, 0),
    "truck": (255, 99, 71),
    "driveable_surface": (0, 207, 191),
    "other_flat": (175, 0, 75),
    "sidewalk": (75, 0, 75),
    "terrain": (112, 180, 60),
    "manmade": (222, 184, 135),
    "vegetation": (0, 175, 0),
}

# Colours for readers with any common colour vision deficiency. Hue cannot distinguish seventeen
# classes: a dichromat sees one hue axis and lightness, so lightness distinguishes about half of
# them. A random search maximised the smallest CIEDE2000 difference over normal vision and the three
# dichromacies, simulated with the matrices of Machado, Oliveira and Fernandes 2009 ("A
# Physiologically-based Model for Simulation of Color Vision Deficiency", severity 1). Pairs of
# ground classes and pairs of ground and object have the highest weight. It started from nuScenes'
# hues, so that a road stays cyan and a car orange. Smallest differences: 11 between any two classes
# (nuScenes: 0.7), 13 between ground and object, 16 within the ground
# (tests/visualization/test_palette.py).
SAFE_CLASS_COLOURS: dict[str, RGB] = {
    "others": (30, 30, 30),
    "barrier": (122, 158, 190),
    "bicycle": (243, 53, 100),
    "bus": (114, 12, 0),
    "car": (241, 151, 0),
    "construction_vehicle": (156, 124, 0),
    "motorcycle": (205, 102, 153),
    "pedestrian": (37, 26, 236),
    "traffic_cone": (25, 73, 73),
    "trailer": (252, 227, 66),
    "truck": (178, 31, 9),
    "driveable_surface": (4, 224, 253),
    "other_flat": (169, 52, 121),
    "sidewalk": (62, 2, 87),
    "terrain": (169, 210, 136),
    "manmade": (193, 177, 170),
    "vegetation": (0, 115, 57),
}

PALETTES: dict[str, dict[str, RGB]] = {"field": CLASS_COLOURS, "safe": SAFE_CLASS_COLOURS}
"""Class colours by palette name: those of nuScenes, and those for all colour visions."""

OCC3D_CLASSES: tuple[str, ...] = tuple(CLASS_COLOURS)
"""Occ3D-nuScenes' 17 semantic classes in label order (label 17 is free)."""

OPENOCCUPANCY_CLASSES: tuple[str, ...] = OCC3D_CLASSES[1:]
"""OpenOccupancy's 16 semantic classes in label order (label 16 is free)."""

# Names that other code bases use for the same classes.
_ALIASES = {
    "other": "others",
    "noise": "others",
    "cone": "traffic_cone",
    "drivable_surface": "driveable_surface",
}
# Other classes get colours on a grid with this many steps of red, green and blue, between these
# CIELAB lightnesses: darker and lighter ones are hard to see on the dark and light backgrounds.
_STEPS = 9
_LIGHTNESS = (25.0, 85.0)
# A candidate with this CIELAB difference from all other colours of a picture is accepted.
_DISTANCE = 30.0

EGO_COLOUR: RGB = (255, 240, 245)
"""nuScenes' vehicle.ego."""


class Difference(IntEnum):
    """Labels of a difference grid, see `scripts.visualization.difference`."""

    RIGHT = 0
    WRONG_CLASS = 1
    MISSED = 2
    INVENTED = 3
    UNSCORED = 4
    FREE = 5


# Blue, vermilion and yellow of Okabe and Ito's set, which readers with common colour vision
# deficiencies can distinguish. Correct voxels are grey, so that errors stand out. Both palettes use
# these colours.
DIFFERENCE_COLOURS: dict[str, RGB] = {
    "right": (168, 176, 184),
    "wrong class": (240, 190, 40),
    "missed": (0, 114, 190),
    "invented": (213, 74, 20),
    "not scored": (226, 229, 233),
}


@dataclass(frozen=True)
class Theme:
    """Colours of everything that is not a voxel.

    Attributes:
        page: background of the sheet.
        sky_top: background of a rendered panel at its upper edge.
        sky_bottom: background of a rendered panel at its lower edge.
        text: main text.
        muted: secondary text.
        rule: frames and separating lines.
    """

    page: RGB
    sky_top: RGB
    sky_bottom: RGB
    text: RGB
    muted: RGB
    rule: RGB


THEMES: dict[str, Theme] = {
    "light": Theme(
        page=(255, 255, 255),
        sky_top=(224, 231, 239),
        sky_bottom=(249, 250, 252),
        text=(22, 27, 34),
        muted=(98, 108, 120),
        rule=(203, 210, 218),
    ),
    "dark": Theme(
        page=(16, 19, 24),
        sky_top=(30, 36, 45),
        sky_bottom=(19, 23, 29),
        text=(236, 240, 245),
        muted=(150, 161, 174),
        rule=(58, 66, 77),
    ),
}


def class_colours(class_names: Sequence[str], palette: str = "field") -> NDArray[np.uint8]:
    """Return the colours of classes in the order of their labels.

    The classes of nuScenes' occupancy labels have the colours of the palette, under any spelling.
    Others get distinct colours that depend on their names, not on the order of the classes.

    Args:
        class_names: names of the C semantic classes, without the free class.
        palette: name in `PALETTES`.

    Returns:
        uint8 [C, 3] sRGB.

    Raises:
        ConfigError: there is no such palette.
    """
    if palette not in PALETTES:
        raise ConfigError(
            f"palette '{palette}' does not exist: choose one of {', '.join(PALETTES)}."
        )
    keys = [_key(name) for name in class_names]
    table = _with_others(tuple(sorted(set(keys) - set(PALETTES[palette]))), palette)
    return np.asarray([table[key] for key in keys], dtype=np.uint8).reshape(-1, 3)


def _key(class_name: str) -> str:
    key = class_name.lower().replace(" ", "_").replace("-", "_")
    return _ALIASES.get(key, key)


@cache
def _candidates() -> tuple[NDArray[np.uint8], NDArray[np.float32]]:
    """Return candidate colours for other classes: sRGB uint8 [n, 3] and CIELAB float32 [n, 3]."""
    levels = np.linspace(0, 255, _STEPS).round()
    rgb = np.array(list(itertools.product(levels, repeat=3)), dtype=np.uint8)
    lab = _lab(rgb)
    visible = (lab[:, 0] > _LIGHTNESS[0]) & (lab[:, 0] < _LIGHTNESS[1])
    return rgb[visible], lab[visible]


def _lab(rgb: NDArray[np.uint8]) -> NDArray[np.float32]:
    pixels = rgb.reshape(-1, 1, 3).astype(np.float32) / 255
    return cv2.cvtColor(pixels, cv2.COLOR_RGB2Lab).reshape(-1, 3).astype(np.float32)


@cache
def _with_others(names: tuple[str, ...], palette: str) -> dict[str, RGB]:
    """Return the palette, completed with colours of these names.

    Each name draws an order of the candidates and takes the first that is far from all previous
    colours, or else the farthest. A colour thus rarely depends on the other names.
    """
    table = dict(PALETTES[palette])
    rgb, lab = _candidates()
    taken = _lab(np.array([*table.values(), EGO_COLOUR], dtype=np.uint8))
    distance = np.linalg.norm(lab[:, None] - taken, axis=-1).min(axis=1)
    for name in names:
        seed = int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "big")
        order = np.random.default_rng(seed).permutation(len(rgb))
        far = order[distance[order] >= min(_DISTANCE, float(distance.max()))]
        red, green, blue = rgb[far[0]].tolist()
        table[name] = (red, green, blue)
        distance = np.minimum(distance, np.linalg.norm(lab - lab[far[0]], axis=-1))
    return table


def pretty_name(class_name: str) -> str:
    """Return the class name for a legend: `driveable_surface` -> `driveable surface`."""
    return class_name.replace("_", " ")


def theme_by_name(name: str) -> Theme:
    """Look up a theme.

    Raises:
        ConfigError: there is no theme with this name.
    """
    if name not in THEMES:
        raise ConfigError(f"theme '{name}' does not exist: choose one of {', '.join(THEMES)}.")
    return THEMES[name]
