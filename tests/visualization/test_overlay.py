from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from scripts.visualization.camera import Camera, chase_view
from scripts.visualization.overlay import overlaid_images
from scripts.visualization.palette import OCC3D_CLASSES, THEMES, class_colours
from scripts.visualization.sheet import SheetOptions, compose_sheet
from scripts.visualization.voxel_renderer import RenderStyle, VoxelRenderer

FREE, SHAPE = 17, (40, 40, 16)
GRID_MIN, VOXEL = (-8.0, -8.0, -1.0), (0.4, 0.4, 0.4)


def front_projection(yaw: float = 0.0, pitch: float = 0.1) -> np.ndarray:
    """Return ego to (u * w, v * w, w) of a 64 x 36 image with a general camera matrix."""
    intrinsic = np.array([[52.0, 0.0, 30.0], [0.0, 47.0, 20.5], [0.0, 0.0, 1.0]])
    turn = np.array(
        [[math.cos(yaw), -math.sin(yaw), 0], [math.sin(yaw), math.cos(yaw), 0], [0, 0, 1]]
    )
    tilt = np.array(
        [[1, 0, 0], [0, math.cos(pitch), -math.sin(pitch)], [0, math.sin(pitch), math.cos(pitch)]]
    )
    axes = np.array([[0.0, -1.0, 0.0], [0.0, 0.0, -1.0], [1.0, 0.0, 0.0]])  # right, down, forward
    matrix = np.eye(4)
    matrix[:3, :3] = intrinsic @ tilt @ axes @ turn.T
    matrix[:3, 3] = -matrix[:3, :3] @ np.array([1.5, 0.2, 1.6])
    return matrix


@pytest.mark.parametrize("scale", [1.0, 3.0])
def test_camera_of_a_projection_matrix(scale):
    matrix = front_projection(0.4) * scale  # the scale of a projection is arbitrary
    camera = Camera.from_projection(matrix, 64, 36)
    points = np.random.default_rng(0).uniform((6, 1, -1), (30, 9, 3), (50, 3))
    homogeneous = np.c_[points, np.ones(50)] @ matrix.T
    expected = homogeneous[:, :2] / homogeneous[:, 2:3]
    pixels, depth = camera.project(points)
    assert np.allclose(pixels, expected) and (depth > 0).all()
    assert np.allclose(camera.rotation @ camera.rotation.T, np.eye(3))
    assert np.allclose(camera.position, (1.5, 0.2, 1.6))
    assert camera.aspect == pytest.approx(47 / 52)
    double, _ = camera.resized(128, 72).project(points)
    assert np.allclose(double, 2 * expected)
    # A pixel's direction leads back to the point that is seen there.
    directions = camera.directions(torch.from_numpy(pixels)).numpy()
    away = points - camera.position
    assert np.allclose(directions, away / np.linalg.norm(away, axis=1, keepdims=True))


def test_no_camera_of_a_singular_matrix():
    with pytest.raises(ValueError, match="does not describe a pinhole camera"):
        Camera.from_projection(np.zeros((4, 4)), 64, 36)


def test_voxels_lie_over_the_image_where_the_matrix_puts_them():
    grid = np.full(SHAPE, FREE, dtype=np.uint8)
    grid[36, 18, 5] = 4
    matrix = front_projection()
    renderer = VoxelRenderer(
        grid, GRID_MIN, VOXEL, FREE, class_colours(OCC3D_CLASSES), THEMES["light"],
        show_ego=False, style=RenderStyle(edge_strength=0.0),
    )  # fmt: skip
    factor = 10
    camera = Camera.from_projection(matrix, 64, 36).resized(64 * factor, 36 * factor)
    image = np.full((36 * factor, 64 * factor, 3), (10, 200, 90), dtype=np.uint8)
    drawn = renderer.render_over(camera, image, 0.5)
    corners = np.array([GRID_MIN]) + (np.array([[36, 18, 5]]) + list(np.ndindex(2, 2, 2))) * 0.4
    seen = np.c_[corners, np.ones(8)] @ matrix.T
    seen = seen[:, :2] / seen[:, 2:3] * factor
    changed = np.argwhere((drawn != image).any(axis=-1))[:, ::-1] + 0.5
    assert len(changed) > 100
    assert np.abs(changed.min(axis=0) - seen.min(axis=0)).max() < 2
    assert np.abs(changed.max(axis=0) - seen.max(axis=0)).max() < 2
    # Half car, half image; the side of a voxel is darker than its class colour.
    u, v = seen.mean(axis=0).astype(int)
    mixed = drawn[v, u].astype(float) - 0.5 * image[v, u]
    assert mixed[0] > 50 and mixed[1] > 20 and mixed[2] < 20, mixed
    opaque = renderer.render_over(camera, image, 1.0)[v, u].astype(int)
    assert abs(int(opaque[0]) - 2 * mixed[0]) <= 3
    assert (renderer.render_over(camera, image, 0.0) == image).all()


def test_car_and_fog_are_left_out():
    grid = np.full(SHAPE, FREE, dtype=np.uint8)
    grid[:, :, 2] = 7
    renderer = VoxelRenderer(
        grid, GRID_MIN, VOXEL, FREE, class_colours(OCC3D_CLASSES), THEMES["light"]
    )
    camera = chase_view(120, 90, 8.0)
    backdrop = np.zeros((90, 120, 3), dtype=np.uint8)
    blue_ground = renderer.render_over(camera, backdrop, 1.0).astype(int)
    assert (blue_ground[..., :2].max(axis=-1) < 40).all(), "only blue and the black image"


def test_sheet_with_overlay(view):
    images = tuple(replace(image, ego2img=front_projection()) for image in view.images)
    with_projection = replace(view, images=images)
    first, *_ = overlaid_images(with_projection, 128, THEMES["light"])
    assert first.image.size == (128, 72) and first.name == images[0].name
    plain = np.asarray(images[0].image.resize((128, 72)))
    assert (np.abs(np.asarray(first.image).astype(int) - plain).max(axis=-1) > 30).mean() > 0.2
    # Without a calibration the image stays, without voxels all do.
    uncalibrated = overlaid_images(view, 128, THEMES["light"])
    assert uncalibrated[0].image is view.images[0].image
    bare = replace(with_projection, prediction=None, truth=None)
    assert overlaid_images(bare, 128, THEMES["light"]) is bare.images
    # The ground truth is drawn without a prediction, and larger images make a taller sheet.
    truth = replace(with_projection, prediction=None)
    assert not np.array_equal(overlaid_images(truth, 128, THEMES["light"])[0].image, first.image)
    small = SheetOptions(scale=0.3)
    tall = compose_sheet(with_projection, replace(small, overlay=True)).image
    assert tall.height > compose_sheet(with_projection, small).image.height + 50
