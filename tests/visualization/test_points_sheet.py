from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from PIL import Image, ImageDraw

from scripts.visualization.camera import Camera
from scripts.visualization.palette import class_colours
from scripts.visualization.point_drawing import Balls, draw_balls, seen_balls
from scripts.visualization.points_sheet import _attend, _query_labels, compose_points_sheet
from scripts.visualization.sample_view import QueryPoints
from scripts.visualization.sheet import SheetOptions

FRONT = np.array(
    [[30.0, -50.0, 0.0, 0.0], [18.0, 0.0, -50.0, 75.0], [1.0, 0.0, 0.0, 0.0], [0, 0, 0, 1.0]]
)
"""Ego to pixels of a 64 x 36 image: 1.5 m above the origin, looking ahead."""


@pytest.fixture
def attentive(view):
    """Return three queries: on the road, in the invented tower, in the air."""
    centres = np.array([[4.0, 0.2, 0.1], [4.4, 4.4, 1.4], [4.0, -3.0, 4.0]], dtype=np.float32)
    offsets = np.array([[0.1, 0, 0], [-0.1, 0, 0], [0, 0.1, 0], [0, -0.1, 0]], dtype=np.float32)
    points = centres[:, None] + offsets
    queries = QueryPoints(
        initial=centres[:, None] + 1.0,
        layers=(centres[:, None], points),
        sampling=(points + 0.5, points),
    )
    images = tuple(replace(image, ego2img=FRONT) for image in view.images)
    return replace(view, queries=queries, images=images)


def test_query_has_the_class_most_of_its_points_lie_in(attentive):
    labels, purity = _query_labels(attentive, attentive.queries.layers[-1], attentive.prediction)
    assert labels.tolist() == [11, 15, 17]
    assert purity.tolist() == [1.0, 1.0, 0.0]
    # Points in free space and outside of the grid do not vote.
    points = attentive.queries.layers[-1][:1].copy()
    points[0, 0] = (1e4, 0, 0)
    points[0, 1] = (4.0, 0.2, 4.0)
    labels, purity = _query_labels(attentive, points, attentive.prediction)
    assert labels.tolist() == [11] and purity.tolist() == [0.5]


def test_points_are_moved_into_the_ego_frame_and_coloured(attentive):
    shifted = np.eye(4)
    shifted[:3, 3] = (1.0, 2.0, 3.0)
    found = _attend(
        replace(attentive, ego2grid=shifted), attentive.queries, attentive.prediction, "safe"
    )
    assert np.allclose(found.layers[1][0, 0], np.array([4.0, 0.2, 0.1]) - (1, 2, 3))
    assert np.allclose(found.sampling, attentive.queries.sampling[-1] - np.array([1, 2, 3]))
    safe = class_colours(attentive.class_names, "safe")
    assert (found.colours[:2] == safe[[11, 15]]).all()
    # Free queries carry no number.
    assert set(found.numbered) == {0, 1}


def test_balls_stand_where_the_camera_sees_them_and_hide_each_other():
    camera = Camera.from_projection(FRONT, 64, 36).resized(320, 180)
    points = np.array([[5.0, 0.0, 1.5], [8.0, 0.0, 1.5], [-5.0, 0.0, 1.5], [5.0, 1.0, 1.0]])
    colours = np.array([[255, 0, 0], [0, 255, 0], [0, 0, 255], [0, 0, 255]], dtype=np.uint8)
    balls = seen_balls(points, colours, camera, 0.1, 1.0)
    assert len(balls.depth) == 3, "what lies behind is not seen"
    image = np.asarray(draw_balls(Image.new("RGB", (320, 180)), balls)).astype(int)
    red, green, blue = (image[..., i] > 100 for i in range(3))
    assert not green.any(), "the nearer ball does not hide the farther"
    # u = (30 + 50 * -y / x) * 5, v = (18 + 50 * (1.5 - z) / x) * 5; radius 0.1 * 250 / 5 = 5.
    for mask, place in ((red, (150, 90)), (blue, (100, 115))):
        rows, columns = np.nonzero(mask)
        assert np.abs(columns.mean() + 0.5 - place[0]) < 1
        assert np.abs(rows.mean() + 0.5 - place[1]) < 1
        assert 8 <= np.ptp(rows) + 1 <= 12
    nothing = Balls(np.zeros((0, 2)), np.zeros(0), np.zeros(0), np.zeros((0, 3)))
    assert not np.asarray(draw_balls(Image.new("RGB", (9, 9)), nothing)).any()


def test_sheet_has_a_panel_per_layer(attentive, monkeypatch):
    written = []
    original = ImageDraw.ImageDraw.text

    def text(self, xy, text, *args, **kwargs):
        written.append(text)
        return original(self, xy, text, *args, **kwargs)

    monkeypatch.setattr(ImageDraw.ImageDraw, "text", text)
    image = compose_points_sheet(attentive, SheetOptions(scale=0.4))
    for words in ("Start", "Layer 1", "Layer 2", "Prediction", "3 × 1 points", "3 × 4 points"):
        assert words in written
    assert attentive.title in written and "driveable surface" in written
    assert "car" not in written, "the legend shows what occurs"
    assert {"1", "2"} <= set(written) and "3" not in written
    pixels = np.asarray(image).astype(int)
    cameras = pixels[: len(pixels) // 2]
    assert (np.abs(cameras - (0, 207, 191)).max(axis=-1) < 30).sum() > 20, "no points on the images"


def test_what_is_missing_is_said(attentive):
    with pytest.raises(ValueError, match="queries and its prediction"):
        compose_points_sheet(replace(attentive, queries=None))
    with pytest.raises(ValueError, match="where the layers sample"):
        bare = replace(attentive.queries, sampling=())
        compose_points_sheet(replace(attentive, queries=bare))
