from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from scripts.visualization.camera import Camera, chase_view, top_view
from scripts.visualization.palette import OCC3D_CLASSES, THEMES, class_colours
from scripts.visualization.panels import render_all
from scripts.visualization.voxel_renderer import RenderStyle, VoxelRenderer
from scripts.visualization.workers import parallel_map

FREE = 17
COLOURS = class_colours(OCC3D_CLASSES)
FLAT = RenderStyle(fog=0.0, edge_strength=0.0)
GRID_MIN, VOXEL = (-8.0, -8.0, -1.0), (0.4, 0.4, 0.4)


def renderer(grid, style=FLAT, **more):
    more.setdefault("show_ego", False)
    return VoxelRenderer(grid, GRID_MIN, VOXEL, FREE, COLOURS, THEMES["light"], style=style, **more)


def empty() -> np.ndarray:
    return np.full((40, 40, 16), FREE, dtype=np.uint8)


def expected_colour(label: int) -> np.ndarray:
    """Return the colour of an open horizontal face: its class colour, black lifted by 7 %."""
    return np.round(255 * 0.07 + 0.93 * COLOURS[label].astype(float))


def pixel_of(point, eye, pitch_rad, focal, width, height):
    """Return the pixel of a point in a camera along +x, tilted down by `pitch_rad`.

    Computed without the camera class: x forward, y left, z up.
    """
    dx, dy, dz = (p - e for p, e in zip(point, eye, strict=True))
    depth = math.cos(pitch_rad) * dx - math.sin(pitch_rad) * dz
    down = -(math.sin(pitch_rad) * dx + math.cos(pitch_rad) * dz)
    return int(width / 2 + focal * -dy / depth), int(height / 2 + focal * down / depth)


# Tops of single voxels at places where the camera below sees them apart from each other.
CELLS = [(12, 20, 5), (20, 8, 2), (33, 30, 9), (25, 22, 0)]


@pytest.mark.parametrize("first_label", range(0, 17, 4))
def test_right_colour_at_the_right_pixel(first_label):
    eye, pitch, focal, width, height = (-14.0, 0.5, 9.0), math.radians(35.0), 300.0, 320, 240
    ahead = (eye[0] + 1.0, eye[1], eye[2] - math.tan(pitch))
    fov = 2 * math.degrees(math.atan(0.5 * width / focal))
    camera = Camera.look_at(eye, ahead, (0, 0, 1), fov, width, height)
    grid = empty()
    labels = [(first_label + i) % 17 for i in range(len(CELLS))]
    for cell, label in zip(CELLS, labels, strict=True):
        grid[cell] = label
    image = renderer(grid).render(camera)
    explained = np.zeros((height, width), dtype=bool)
    for cell, label in zip(CELLS, labels, strict=True):
        top = [low + (i + 0.5) * s for low, i, s in zip(GRID_MIN, cell, VOXEL, strict=True)]
        top[2] += 0.2
        u, v = pixel_of(top, eye, pitch, focal, width, height)
        assert np.abs(image[v, u] - expected_colour(label)).max() <= 3, (cell, image[v, u])
        # The voxel reaches no farther from its top's middle than its diagonal.
        reach = int(0.4 * math.sqrt(3) * focal / (math.dist(top, eye) - 0.4)) + 2
        explained[v - reach : v + reach + 1, u - reach : u + reach + 1] = True
    sky = renderer(empty()).render(camera)
    assert (image == sky).all(axis=-1)[~explained].all(), "something is drawn elsewhere"


def test_nearer_voxel_hides_the_farther():
    camera = Camera.look_at((-14, 0.2, 0.2), (0, 0.2, 0.2), (0, 0, 1), 30, 120, 90)
    grid = empty()
    grid[30, 18:23, 1:6] = 4
    behind = renderer(grid).render(camera)[45, 60].astype(int)
    grid[10, 18:23, 1:6] = 7
    front = renderer(grid).render(camera)[45, 60].astype(int)
    assert behind[0] > behind[2] + 80, "the orange wall is not seen"
    assert front[2] > front[0] + 80, "the blue wall does not hide it"


def test_faces_shadows_and_edges():
    camera = chase_view(320, 240, 8.0)
    grid = empty()
    grid[:, :, 2] = 11
    open_ground = renderer(grid).render(camera).astype(int)
    grid[24:30, 18:24, 3:9] = 4
    boxed = renderer(grid).render(camera).astype(int)
    top = camera.project(np.array([[2.8, 0.4, 2.6]]))[0][0].astype(int)
    side = camera.project(np.array([[1.6, 0.4, 1.5]]))[0][0].astype(int)
    bright, dim = (boxed[v, u].sum() for u, v in (top, side))
    assert 0.6 * bright < dim < 0.95 * bright, "the side is not a shade darker than the top"
    # The sun stands behind the left shoulder: the shadow falls to the right and ahead.
    shadow = camera.project(np.array([[3.5, -1.2, 0.2]]))[0][0].astype(int)
    sunny = camera.project(np.array([[-1.0, 2.6, 0.2]]))[0][0].astype(int)
    assert boxed[shadow[1], shadow[0]].sum() < 0.9 * open_ground[shadow[1], shadow[0]].sum()
    assert np.abs(boxed[sunny[1], sunny[0]] - open_ground[sunny[1], sunny[0]]).max() <= 3

    lined = renderer(grid, RenderStyle(fog=0.0)).render(camera).astype(int)
    edge = camera.project(np.array([[-2.0, 2.6, 0.2]]))[0][0].astype(int)
    middle = camera.project(np.array([[-1.8, 2.6, 0.2]]))[0][0].astype(int)
    column = lined[edge[1] - 1 : edge[1] + 2, edge[0]].sum(axis=-1)
    assert column.min() < 0.9 * lined[middle[1], middle[0]].sum(), "voxels have no edges"


def test_distance_fades_into_the_background():
    grid = empty()
    grid[:, :, 2] = 7
    camera = chase_view(160, 120, 8.0)
    far = camera.project(np.array([[7.4, 0.2, 0.2]]))[0][0].astype(int)
    clear = renderer(grid).render(camera)[far[1], far[0]].astype(int)
    foggy = renderer(grid, RenderStyle(fog=0.8, edge_strength=0))
    faded = foggy.render(camera)[far[1], far[0]].astype(int)
    assert faded[0] > clear[0] + 40, "blue must turn towards white"
    near = camera.project(np.array([[-3.0, 0.2, 0.2]]))[0][0].astype(int)
    both = [r.render(camera)[near[1], near[0]].astype(int) for r in (foggy, renderer(grid))]
    assert np.abs(both[0] - both[1]).max() <= 1, "nothing must fade near by"


def test_top_view_has_forward_up_and_left_left():
    grid = empty()
    grid[34:38, 30:34, 3] = 4  # ahead and to the left
    image = renderer(grid).render(top_view(80, 80, 8.0)).astype(int)
    rows, columns = np.nonzero(np.abs(image - expected_colour(4)).max(axis=-1) <= 3)
    assert 48 < len(rows) <= 8 * 8 * 4
    # 0.2 m to a pixel: x of 5.6 to 7.2 m is row 4 to 12, y of 4 to 5.6 m is column 12 to 20.
    assert (rows.min(), rows.max()) == pytest.approx((4, 11), abs=1)
    assert (columns.min(), columns.max()) == pytest.approx((12, 19), abs=1)


@pytest.mark.parametrize("quarter_turns", [1, 2, 3])
def test_picture_does_not_depend_on_the_grids_frame(quarter_turns):
    """OpenOccupancy's grid is in the LiDAR frame, which is rotated against the ego frame."""
    rng = np.random.default_rng(3)
    grid = empty()
    grid[:, :, 2] = 11
    for label in rng.integers(0, 17, 30):
        x, y = rng.integers(2, 36, 2)
        grid[x : x + 2, y : y + 3, 3 : 3 + rng.integers(1, 6)] = label
    camera = chase_view(160, 120, 8.0)
    straight = renderer(grid, RenderStyle(), show_ego=True).render(camera).astype(int)
    # np.rot90 takes x to y: a turn by +90 degrees about z.
    angle = math.pi / 2 * quarter_turns
    ego2grid = np.eye(4)
    ego2grid[:2, :2] = np.round(
        [[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]]
    )
    turned = renderer(
        np.rot90(grid, quarter_turns).copy(), RenderStyle(), show_ego=True, ego2grid=ego2grid
    )
    difference = np.abs(turned.render(camera).astype(int) - straight).max(axis=-1)
    # A ray that meets a voxel's edge exactly may end on either of its faces.
    assert (difference > 4).mean() < 0.005


def test_ego_car_stands_in_the_middle_and_throws_a_shadow():
    grid = empty()
    grid[:, :, 2] = 11
    camera = top_view(160, 160, 8.0)
    with_car = renderer(grid, show_ego=True).render(camera).astype(int)
    without = renderer(grid).render(camera).astype(int)
    changed = (np.abs(with_car - without).max(axis=-1) > 10).nonzero()
    body = (with_car.min(axis=-1) > 190).nonzero()
    # 0.1 m to a pixel: x from -0.64 to 3.44 m is row 46 to 87, |y| < 0.87 m is column 71 to 89.
    assert len(body[0]) > 150
    assert (body[0].min() >= 44) and (body[0].max() <= 88)
    assert (body[1].min() >= 69) and (body[1].max() <= 91)
    assert changed[1].max() > 93, "no shadow to the right"


def test_nothing_to_draw_is_background_only():
    image = renderer(empty()).render(chase_view(40, 30)).astype(int)
    sky = THEMES["light"]
    assert (image == image[:, :1]).all(), "rows are not even"
    assert np.abs(image[0, 0] - sky.sky_top).max() <= 2
    assert np.abs(image[-1, 0] - sky.sky_bottom).max() <= 2


def test_smoothing_approaches_a_finer_picture():
    grid = empty()
    grid[10:20, 10:30, 0:8] = 15
    camera = chase_view(160, 120, 8.0)
    rough_style = RenderStyle(fog=0.0, edge_strength=0.0, smooth_edges=False)
    rough = renderer(grid, rough_style).render(camera).astype(float)
    smooth = renderer(grid).render(camera).astype(float)
    changed = (rough != smooth).any(axis=-1)
    assert 0.002 < changed.mean() < 0.1, "only borders are sampled again"
    fine = renderer(grid, rough_style).render(camera.resized(960, 720))
    truth = fine.reshape(120, 6, 160, 6, 3).mean(axis=(1, 3))
    error, before = (np.abs(image - truth)[changed].mean() for image in (smooth, rough))
    assert error < 0.5 * before, (error, before)


@pytest.mark.parametrize(
    ("grid", "more", "words"),
    [
        (np.zeros((4, 4), dtype=np.uint8), {}, "[X, Y, Z]"),
        (np.zeros((0, 4, 4), dtype=np.uint8), {}, "[X, Y, Z]"),
        (np.zeros((4, 4, 4), dtype=np.uint8), {"colours": np.zeros((0, 3), np.uint8)}, "colours"),
        (np.zeros((4, 4, 4), dtype=np.uint8), {"voxel_size": (0.4, 0.4, 0.0)}, "voxel_size"),
    ],
)
def test_wrong_arguments_are_named(grid, more, words):
    arguments = dict(
        labels=grid, grid_min=GRID_MIN, voxel_size=VOXEL, empty_label=FREE, colours=COLOURS,
        theme=THEMES["light"],
    )  # fmt: skip
    with pytest.raises(ValueError) as caught:
        VoxelRenderer(**{**arguments, **more})
    assert words in str(caught.value)


def test_strips_make_the_whole_picture():
    grid = empty()
    grid[:, :, 2] = 11
    grid[10:20, 10:30, 3:8] = 15
    camera = chase_view(96, 72, 8.0)
    drawn = renderer(grid, RenderStyle(), show_ego=True)
    whole = drawn.render(camera)
    strips = [drawn.render_rows(camera, a, b) for a, b in ((0, 1), (1, 30), (30, 72))]
    assert (np.concatenate(strips) == whole).all()
    side = top_view(20, 20, 8.0)
    assert all(
        (a == b).all()
        for a, b in zip(
            render_all([(drawn, camera), (drawn, side)]), (whole, drawn.render(side)), strict=True
        )
    )


def test_drawing_threads_leave_torchs_threads_alone():
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        inside = parallel_map(lambda _: torch.get_num_threads(), range(8))
        assert inside == [1] * 8
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)
