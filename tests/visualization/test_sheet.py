from __future__ import annotations

from dataclasses import replace
from itertools import combinations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from nuscenes.utils.color_map import get_colormap
from PIL import ImageDraw

from scripts.visualization.difference import difference_colours, difference_grid
from scripts.visualization.job import spread
from scripts.visualization.overview import compose_overview, make_tile
from scripts.visualization.palette import (
    CLASS_COLOURS,
    DIFFERENCE_COLOURS,
    OCC3D_CLASSES,
    OPENOCCUPANCY_CLASSES,
    Difference,
    class_colours,
)
from scripts.visualization.sample_view import dense_grid
from scripts.visualization.sheet import SheetOptions, compose_sheet, legend_entries
from scripts.visualization.voxel_renderer import VoxelRenderer

SMALL = SheetOptions(scale=0.5)
VARIANTS = {
    "prediction": dict(truth=None, images=()),
    "truth": dict(prediction=None, images=(), scores=()),
    "truth and cameras": dict(prediction=None, scores=()),
    "prediction and cameras": dict(truth=None),
    "all": dict(),
    "long names": dict(scene_name="a-scene-with-a-rather-long-name-0123456789"),
}


@pytest.fixture
def written(monkeypatch):
    """Record all text: canvas, text and its box."""
    log: list[tuple[object, str, tuple[float, float, float, float]]] = []
    original = ImageDraw.ImageDraw.text

    def text(self, xy, text, *args, **kwargs):
        box = self.textbbox(xy, text, font=kwargs["font"], anchor=kwargs["anchor"])
        log.append((self._image, text, box))
        return original(self, xy, text, *args, **kwargs)

    monkeypatch.setattr(ImageDraw.ImageDraw, "text", text)
    return log


def check_layout(written):
    """Check that every line of text is on its canvas and none overlaps another."""
    for canvas, text, (left, top, right, bottom) in written:
        assert left >= 0 and top >= 0, text
        assert right <= canvas.width and bottom <= canvas.height, text
    for (canvas, text, a), (other, other_text, b) in combinations(written, 2):
        if canvas is other:
            apart = a[2] <= b[0] or b[2] <= a[0] or a[3] <= b[1] or b[3] <= a[1]
            assert apart, f"'{text}' lies on '{other_text}'"


@pytest.mark.parametrize("scale", [0.3, 0.5, 1.0, 2.0])
@pytest.mark.parametrize("variant", VARIANTS)
def test_text_is_complete_and_never_overlaps(variant, scale, view, written, monkeypatch):
    # Only the layout matters: grey panels suffice.
    monkeypatch.setattr(
        VoxelRenderer,
        "render_rows",
        lambda _, camera, a, b: np.full((b - a, camera.width, 3), 128, np.uint8),
    )
    view = replace(view, **VARIANTS[variant])
    compose_sheet(view, SheetOptions(scale=scale))
    check_layout(written)
    texts = [text for _, text, _ in written]
    for name in OCC3D_CLASSES:
        assert name.replace("_", " ") in texts
    assert view.title in texts
    for name, value in view.scores:
        assert name in texts and f"{value:.1f}" in texts
    assert ("Prediction" in texts) == (view.prediction is not None)
    assert ("Ground truth" in texts) == (view.truth is not None)
    assert ("front left" in texts) == bool(view.images)


def test_legend_shows_each_class_in_its_colour(view):
    image = np.asarray(compose_sheet(replace(view, images=()), SMALL).image)
    legend = image[int(0.88 * len(image)) :].reshape(-1, 3)
    for name, colour in legend_entries(OCC3D_CLASSES):
        count = int((legend == colour).all(axis=1).sum())
        assert count >= 9, f"{name}: {count} pixels"


def test_sheet_grows_with_scale(view):
    view = replace(view, images=())
    small = compose_sheet(view, SheetOptions(scale=0.25)).image
    large = compose_sheet(view, SheetOptions(scale=0.5)).image
    assert large.width == pytest.approx(2 * small.width, abs=4)
    assert large.height == pytest.approx(2 * small.height, abs=12)


def test_themes_and_panels(view):
    light = compose_sheet(view, SMALL)
    dark = compose_sheet(view, SheetOptions(scale=0.5, theme="dark"))
    assert light.image.getpixel((1, 1)) == (255, 255, 255)
    assert sum(dark.image.getpixel((1, 1))) < 90
    assert [panel.title for panel in light.panels] == ["Prediction", "Ground truth", "Difference"]
    plain = compose_sheet(view, SheetOptions(scale=0.5, difference=False))
    assert [panel.title for panel in plain.panels] == ["Prediction", "Ground truth"]
    for panel in light.panels:
        assert np.asarray(panel.image).std() > 10, f"{panel.title} is blank"


def test_cameras_stand_in_panorama_order(view, written):
    compose_sheet(view, SMALL)
    cameras = [text for _, text, _ in written if text.startswith(("front", "back"))]
    assert cameras == ["back left", "front left", "front", "front right", "back right", "back"]


@pytest.mark.parametrize("count", [1, 2, 5])
def test_overview_is_complete(count, view, written):
    panels = compose_sheet(view, SMALL).panels
    tiles = [make_tile(replace(view, index=i), panels, SMALL) for i in range(count)]
    written.clear()
    image = compose_overview(tiles, "name", legend_entries(OCC3D_CLASSES), SMALL)
    check_layout(written)
    texts = [text for _, text, _ in written]
    for index in range(count):
        assert f"scene-0103  ·  sample {index + 1} of 81" in texts
    assert "vegetation" in texts
    assert np.asarray(image).std() > 20
    with pytest.raises(ValueError, match="at least one"):
        compose_overview([], "name", legend_entries(OCC3D_CLASSES), SMALL)


def test_colours_are_those_of_nuscenes():
    official = get_colormap()
    for name, category in {
        "others": "noise",
        "barrier": "movable_object.barrier",
        "bicycle": "vehicle.bicycle",
        "bus": "vehicle.bus.bendy",
        "car": "vehicle.car",
        "construction_vehicle": "vehicle.construction",
        "motorcycle": "vehicle.motorcycle",
        "pedestrian": "human.pedestrian.adult",
        "traffic_cone": "movable_object.trafficcone",
        "trailer": "vehicle.trailer",
        "truck": "vehicle.truck",
        "driveable_surface": "flat.driveable_surface",
        "other_flat": "flat.other",
        "sidewalk": "flat.sidewalk",
        "terrain": "flat.terrain",
        "manmade": "static.manmade",
        "vegetation": "static.vegetation",
    }.items():
        assert CLASS_COLOURS[name] == tuple(official[category]), name
    assert len(OCC3D_CLASSES) == 17
    assert OPENOCCUPANCY_CLASSES == OCC3D_CLASSES[1:]
    assert (class_colours(OPENOCCUPANCY_CLASSES) == class_colours(OCC3D_CLASSES)[1:]).all()
    car, dragon = class_colours(["car", "dragon"]).tolist()
    assert tuple(car) == CLASS_COLOURS["car"] and dragon != car


def test_difference_truth_table():
    prediction = np.array([[[3, 3, 5, 5, 5]]], dtype=np.uint8)
    truth = np.array([[[3, 4, 3, 5, 3]]], dtype=np.uint8)
    scored = np.array([[[True, True, True, True, False]]])
    found = difference_grid(prediction, truth, 5, scored)[0, 0].tolist()
    assert found == [
        Difference.RIGHT,
        Difference.WRONG_CLASS,
        Difference.MISSED,
        Difference.FREE,
        Difference.UNSCORED,
    ]
    assert difference_grid(truth, prediction, 5)[0, 0, 2] == Difference.INVENTED
    # Predictions outside the scored voxels are not shown as errors.
    assert difference_grid(truth, prediction, 5, ~scored)[0, 0, 2] == Difference.FREE
    assert len(difference_colours()) == int(Difference.FREE) == len(DIFFERENCE_COLOURS)
    with pytest.raises(ValueError, match=r"\(1, 1, 4\)"):
        difference_grid(prediction[..., :4], truth, 5)


def test_dense_grid_leaves_out_what_lies_outside():
    coords = np.array([[0, 1, 2], [3, 0, 0], [-1, 0, 0], [1, 1, 1]])
    grid = dense_grid(coords, np.array([4, 5, 6, 7]), (3, 2, 3), 17)
    assert grid[0, 1, 2] == 4 and grid[1, 1, 1] == 7
    assert (grid != 17).sum() == 2


@given(st.integers(1, 50), st.integers(1, 200))
def test_spread_covers_both_ends(count, total):
    chosen = spread(count, total)
    assert len(chosen) == len(set(chosen)) == min(count, total)
    assert chosen == sorted(chosen) and chosen[0] == 0 and chosen[-1] < total
    if count > 1:
        assert chosen[-1] == total - 1
