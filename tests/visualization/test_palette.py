"""Colours for readers with a colour vision deficiency.

Independent reference: Machado's published matrices (below), scikit-image's CIELAB and CIEDE2000.
"""

from __future__ import annotations

import numpy as np
import pytest
from skimage.color import deltaE_ciede2000, rgb2lab

from scripts.visualization.palette import (
    DIFFERENCE_COLOURS,
    EGO_COLOUR,
    OCC3D_CLASSES,
    PALETTES,
    THEMES,
    class_colours,
)

# Machado, Oliveira, Fernandes: A Physiologically-based Model for Simulation of Color Vision
# Deficiency, IEEE TVCG 15(6), 2009; severity 1.0; applied to linear sRGB.
VISIONS = {
    "normal": np.eye(3),
    "protanopia": np.array(
        [
            [0.152286, 1.052583, -0.204868],
            [0.114503, 0.786281, 0.099216],
            [-0.003882, -0.048116, 1.051998],
        ]
    ),
    "deuteranopia": np.array(
        [
            [0.367322, 0.860646, -0.227968],
            [0.280085, 0.672501, 0.047413],
            [-0.011820, 0.042940, 0.968881],
        ]
    ),
    "tritanopia": np.array(
        [
            [1.255528, -0.076749, -0.178779],
            [-0.078411, 0.930809, 0.147602],
            [0.004733, 0.691367, 0.303900],
        ]
    ),
}
GROUND = ("driveable_surface", "other_flat", "sidewalk", "terrain")


def seen(colours: np.ndarray, vision: str) -> np.ndarray:
    """Return CIELAB [n, 3] of sRGB colours [n, 3] (0 to 255) under this vision."""
    srgb = np.asarray(colours, dtype=float) / 255
    linear = np.where(srgb <= 0.04045, srgb / 12.92, ((srgb + 0.055) / 1.055) ** 2.4)
    linear = (linear @ VISIONS[vision].T).clip(0, 1)
    back = np.where(linear <= 0.0031308, 12.92 * linear, 1.055 * linear ** (1 / 2.4) - 0.055)
    return rgb2lab(back)


def differences(colours: np.ndarray, vision: str) -> np.ndarray:
    """Return CIEDE2000 [n, n] between all pairs, infinite on the diagonal."""
    lab = seen(colours, vision)
    found = deltaE_ciede2000(lab[:, None], lab[None])
    np.fill_diagonal(found, np.inf)
    return found


@pytest.mark.parametrize("vision", VISIONS)
def test_safe_classes_can_be_told_apart(vision):
    safe = differences(class_colours(OCC3D_CLASSES, "safe"), vision)
    field = differences(class_colours(OCC3D_CLASSES, "field"), vision)
    ground = np.array([name in GROUND for name in OCC3D_CLASSES])
    # Any class may be next to any other; the ground is next to everything.
    assert safe.min() >= 11
    assert safe[ground][:, ~ground].min() >= 13
    assert safe[ground][:, ground].min() >= 16
    assert safe.min() > 1.5 * field.min()
    if vision != "normal":
        assert field.min() < 1.5, "the comparison has lost its point"


def test_simulation_is_the_published_one():
    """Grey stays grey, and colours that dichromats confuse become equal."""
    greys = np.array([[20, 20, 20], [128, 128, 128], [240, 240, 240]])
    for vision in VISIONS:
        assert np.abs(seen(greys, vision) - seen(greys, "normal")).max() < 0.1
    red_green = np.array([[190, 80, 40], [115, 115, 35]])
    normal = differences(red_green, "normal").min()
    for vision in ("protanopia", "deuteranopia"):
        assert differences(red_green, vision).min() < 0.5 * normal


@pytest.mark.parametrize("vision", VISIONS)
def test_differences_background_and_ego_can_be_told_apart(vision):
    assert differences(np.array(list(DIFFERENCE_COLOURS.values())), vision).min() >= 13
    marks = [colour for name, colour in DIFFERENCE_COLOURS.items() if name != "not scored"]
    assert differences(np.array(marks), vision).min() >= 20
    classes = class_colours(OCC3D_CLASSES, "safe")
    for backdrop in (THEMES["light"].sky_top, THEMES["light"].sky_bottom, EGO_COLOUR):
        assert differences(np.vstack([classes, [backdrop]]), vision)[-1].min() >= 9


def test_palettes_name_the_same_classes():
    assert {tuple(colours) for colours in PALETTES.values()} == {OCC3D_CLASSES}
    with pytest.raises(ValueError, match=r"palette 'neon'.*field, safe"):
        class_colours(OCC3D_CLASSES, "neon")


@pytest.mark.parametrize("palette", PALETTES)
def test_any_class_list_has_colours(palette):
    """Known classes keep their colours under any spelling; others get distinct ones."""
    own = ["Traffic Cone", "ground", "wall", "driveable-surface", "crate", "person"]
    colours = class_colours(own, palette)
    known = class_colours(["traffic_cone", "driveable_surface"], palette)
    np.testing.assert_array_equal(colours[[0, 3]], known)
    everything = np.vstack([class_colours(OCC3D_CLASSES, palette), colours[[1, 2, 4, 5]]])
    among_others = differences(everything, "normal")[17:]
    assert among_others.min() >= 10
    np.testing.assert_array_equal(class_colours(own[::-1], palette), colours[::-1])
    many = class_colours([f"class {i}" for i in range(254)], palette)
    assert len(np.unique(many, axis=0)) == 254
