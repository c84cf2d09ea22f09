"""Sheet of a model's attention: the points of its queries, layer by layer, and sampling points.

Dimension letters: Q queries, R points and S sampling points of a query, C classes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageEnhance

from scripts.runtime.errors import ConfigError
from scripts.visualization.camera import VIEWS, Camera
from scripts.visualization.palette import RGB, class_colours, pretty_name
from scripts.visualization.panels import Panel, extent_m, paste_inset, render_panels
from scripts.visualization.point_drawing import Balls, draw_balls, draw_ground, seen_balls
from scripts.visualization.sample_view import CameraImage, QueryPoints, SampleView
from scripts.visualization.sheet import (
    SheetOptions,
    camera_rows,
    draw_legend,
    draw_panel,
    draw_rows,
    draw_title,
    legend_height,
    rows_height,
)
from scripts.visualization.text import draw_text
from scripts.visualization.voxel_renderer import VoxelRenderer

_WIDTH, _PANEL_HEIGHT, _COLUMNS = 1944, 376, 4
_MARGIN, _GAP, _CAMERA_GAP = 24, 12, 6
_TITLE_HEIGHT, _CAPTION_HEIGHT, _CAPTION_SIZE, _NOTE_SIZE = 46, 30, 15, 13
_FREE_COLOUR: RGB = (150, 156, 164)
_NUMBERED = 6
"""Number of queries with a number that identifies them in every picture."""


@dataclass(frozen=True)
class _Attention:
    """The queries of a sample, in the ego frame.

    Attributes:
        labels: int64 [Q] most frequent class at a query's last points; C: all in free space.
        colours: uint8 [Q, 3].
        layers: float64 [Q, R, 3] points: at the start, then after each layer.
        sampling: float64 [Q, S, 3] sampling points of the last layer.
        numbered: queries with a number.
    """

    labels: NDArray[np.int64]
    colours: NDArray[np.uint8]
    layers: tuple[NDArray[np.float64], ...]
    sampling: NDArray[np.float64]
    numbered: tuple[int, ...]


def compose_points_sheet(view: SampleView, options: SheetOptions | None = None) -> Image.Image:
    """Draw sampling points over the cameras, and the points of the queries layer by layer.

    Points have the colour of their query's final class. Some queries have a number that is the same
    in every picture.

    Args:
        view: a sample with prediction, queries and images.
        options: size and style.

    Raises:
        ConfigError: the sample has no prediction, no queries, or queries without sampling points.
    """
    options = options or SheetOptions()
    if view.queries is None or view.prediction is None:
        raise ConfigError("a sheet of points needs a model's queries and its prediction.")
    if not view.queries.sampling:
        raise ConfigError("a sheet of points needs the places where the layers sample the images.")
    px, theme = options.px, options.colours
    attention = _attend(view, view.queries, view.prediction, options.palette)
    inner, left = px(_WIDTH), px(_MARGIN)
    marked = [_marked(camera, attention, px(_WIDTH) // 3) for camera in view.images]
    rows = camera_rows(marked, inner, px(_CAMERA_GAP), single_row=False)
    panels = _panels(view, attention, options)
    entries = _legend(view, attention, options)
    height = px(_TITLE_HEIGHT) + px(_CAPTION_HEIGHT) + rows_height(rows, options)
    panel_rows = -(-len(panels) // _COLUMNS)
    height += panel_rows * (px(_CAPTION_HEIGHT) + px(_PANEL_HEIGHT) + px(_GAP))
    height += legend_height(entries, inner, options) + px(14)
    canvas = Image.new("RGB", (inner + 2 * left, height), theme.page)
    draw_title(canvas, view, options)
    _draw_caption(canvas, len(view.queries.layers), options)
    top = draw_rows(canvas, rows, px(_TITLE_HEIGHT) + px(_CAPTION_HEIGHT), options)
    step = panels[0].image.width + px(_GAP)
    for i, panel in enumerate(panels):
        row_top = top + (i // _COLUMNS) * (px(_CAPTION_HEIGHT) + px(_PANEL_HEIGHT) + px(_GAP))
        draw_panel(canvas, left + (i % _COLUMNS) * step, row_top, panel, options)
    draw_legend(canvas, height - legend_height(entries, inner, options) - px(14), entries, options)
    return canvas


def _draw_caption(canvas: Image.Image, num_layers: int, options: SheetOptions) -> None:
    px, theme = options.px, options.colours
    x, middle = px(_MARGIN), px(_TITLE_HEIGHT) + px(_CAPTION_HEIGHT) // 2
    title = f"Where layer {num_layers} samples the images"
    x += draw_text(canvas, (x, middle), title, px(_CAPTION_SIZE), theme.text, bold=True)
    note = "points in the colour of their query's final class; numbers mark the same queries below"
    draw_text(canvas, (x + px(10), middle + px(1)), note, px(_NOTE_SIZE), theme.muted)


def _attend(
    view: SampleView, queries: QueryPoints, prediction: NDArray[np.uint8], palette: str
) -> _Attention:
    grid2ego = np.linalg.inv(view.ego2grid)

    def in_ego(points: NDArray[np.float32]) -> NDArray[np.float64]:
        return points.astype(np.float64) @ grid2ego[:3, :3].T + grid2ego[:3, 3]

    labels, purity = _query_labels(view, queries.layers[-1], prediction)
    table = np.vstack([class_colours(view.class_names, palette), [_FREE_COLOUR]]).astype(np.uint8)
    sampling = in_ego(queries.sampling[-1])
    layers = tuple(in_ego(points) for points in (queries.initial, *queries.layers))
    numbered = _choose(labels, purity, sampling, view.images, len(view.class_names))
    return _Attention(labels, table[labels], layers, sampling, numbered)


def _query_labels(
    view: SampleView, points: NDArray[np.float32], prediction: NDArray[np.uint8]
) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Return the most frequent class [Q] at a query's points [Q, R, 3], and its share [Q]."""
    num_classes = len(view.class_names)
    cells = np.floor((points - np.array(view.grid_min)) / np.array(view.voxel_size)).astype(int)
    inside = ((cells >= 0) & (cells < np.array(prediction.shape))).all(axis=-1)
    cells = np.where(inside[..., None], cells, 0)
    found = np.where(inside, prediction[tuple(np.moveaxis(cells, -1, 0))], num_classes)
    found = np.minimum(found, num_classes)
    counts = (found[..., None] == np.arange(num_classes)).sum(axis=1)
    labels = np.where(counts.any(axis=1), counts.argmax(axis=1), num_classes)
    return labels, counts.max(axis=1) / points.shape[1]


def _choose(
    labels: NDArray[np.int64],
    purity: NDArray[np.float64],
    sampling: NDArray[np.float64],
    images: Sequence[CameraImage],
    num_classes: int,
) -> tuple[int, ...]:
    """Return the queries to number: of different classes, rare ones first, unambiguous, visible."""
    in_view = np.zeros(len(labels))
    for image in images:
        camera = _camera_of(image)
        if camera is not None:
            in_view = np.maximum(in_view, _visible(camera, sampling).mean(axis=1))
    away = np.linalg.norm(sampling.mean(axis=1)[:, :2], axis=1)
    # Near enough to be visible, and not below the vehicle.
    score = purity + 2.0 * in_view - 0.03 * np.abs(away - 14.0)
    frequency = np.bincount(labels, minlength=num_classes + 1)
    present = [c for c in np.argsort(frequency, kind="stable") if frequency[c] and c < num_classes]
    chosen: list[int] = []
    while present and len(chosen) < _NUMBERED and len(chosen) < (labels < num_classes).sum():
        for label in present:
            members = [q for q in np.nonzero(labels == label)[0] if q not in chosen]
            if members and len(chosen) < _NUMBERED:
                chosen.append(int(max(members, key=lambda q: score[q])))
    return tuple(sorted(chosen))


def _camera_of(image: CameraImage) -> Camera | None:
    if image.ego2img is None:
        return None
    return Camera.from_projection(image.ego2img, image.image.width, image.image.height)


def _visible(camera: Camera, points: NDArray[np.float64]) -> NDArray[np.bool_]:
    """Return whether a camera sees each of the points [Q, S, 3] (ego frame): bool [Q, S]."""
    pixels, depth = camera.project(points.reshape(-1, 3))
    inside = ((pixels >= 0) & (pixels < np.array([camera.width, camera.height]))).all(axis=1)
    return (inside & (depth > 0.3)).reshape(points.shape[:2])


# -- pictures ----------------------------------------------------------------------------------


def _marked(image: CameraImage, attention: _Attention, width: int) -> CameraImage:
    """Return a camera's image with the sampling points on it."""
    height = round(width * image.image.height / image.image.width)
    picture = image.image.convert("RGB").resize((width, height), Image.Resampling.LANCZOS)
    camera = _camera_of(image)
    if camera is None:
        return CameraImage(image.name, picture)
    # Reduce contrast, so that the points stand out.
    picture = ImageEnhance.Brightness(ImageEnhance.Color(picture).enhance(0.5)).enhance(0.92)
    camera = camera.resized(width, height)
    count = attention.sampling.shape[1]
    colours = np.repeat(attention.colours, count, axis=0)
    dots = seen_balls(attention.sampling.reshape(-1, 3), colours, camera, 0.0, width / 330)
    picture = _number(draw_balls(picture, dots), camera, attention, attention.sampling, width / 130)
    return CameraImage(image.name, picture)


def _number(
    picture: Image.Image,
    camera: Camera,
    attention: _Attention,
    points: NDArray[np.float64],
    radius_px: float,
) -> Image.Image:
    """Emphasise the numbered queries' points [Q, R, 3] and write their numbers."""
    for number, query in enumerate(attention.numbered, start=1):
        colours = np.repeat(attention.colours[query][None], points.shape[1], axis=0)
        balls = seen_balls(points[query], colours, camera, 0.0, radius_px)
        if not len(balls.depth):
            continue
        rim = Balls(
            balls.pixels, balls.depth, balls.radius_px + 1.5, np.full_like(balls.colours, 255)
        )
        picture = draw_balls(draw_balls(picture, rim), balls)
        size = max(9, round(3.4 * radius_px))
        x, y = balls.pixels[balls.pixels[:, 1].argmin()]
        place = (
            float(np.clip(x, size, picture.width - size)),
            float(np.clip(y - 1.6 * size, 2.4 * size, picture.height - size)),
        )
        for dx, dy in ((-1, 0), (1, 0), (0, -1), (0, 1)):
            shifted = (place[0] + dx * size / 9, place[1] + dy * size / 9)
            draw_text(picture, shifted, str(number), size, (255, 255, 255), bold=True, anchor="mm")
        draw_text(picture, place, str(number), size, (0, 0, 0), bold=True, anchor="mm")
    return picture


def _panels(view: SampleView, attention: _Attention, options: SheetOptions) -> list[Panel]:
    """Return the panels: start, every layer, and the resulting voxels."""
    px = options.px
    size = ((px(_WIDTH) - (_COLUMNS - 1) * px(_GAP)) // _COLUMNS, px(_PANEL_HEIGHT))
    extent = extent_m(view)
    side = round(0.30 * size[1])
    backdrops = []
    for name, shape in (("chase", size), ("top", (side, side))):
        camera = VIEWS[name](*shape, extent, 0.0)
        backdrops.append((camera, _backdrop(view, camera, extent, options)))
    panels = []
    for i, points in enumerate(attention.layers):
        queries, count = points.shape[:2]
        title = "Start" if i == 0 else f"Layer {i}"
        note = f"{queries:,} queries" if i == 0 else f"{queries:,} × {count} points"
        image, inset = (
            _point_picture(picture, camera, points, attention, options, is_main)
            for is_main, (camera, picture) in zip((True, False), backdrops, strict=True)
        )
        paste_inset(image, inset, options.colours)
        panels.append(Panel(title, note, (), image))
    voxels = SampleView(
        **{**vars(view), "truth": None, "scored": None, "queries": None, "lidar": None}
    )
    return [
        *panels,
        *render_panels(voxels, size, options.colours, False, palette=options.palette),
    ]


def _backdrop(
    view: SampleView, camera: Camera, extent_m: float, options: SheetOptions
) -> Image.Image:
    """Return the ego vehicle on empty ground."""
    empty = np.full((1, 1, 1), 1, dtype=np.uint8)
    renderer = VoxelRenderer(
        empty,
        (-extent_m, -extent_m, -1.0),
        (2 * extent_m, 2 * extent_m, 1.0),
        1,
        np.zeros((1, 3), dtype=np.uint8),
        options.colours,
    )
    image = Image.fromarray(renderer.render(camera))
    draw_ground(image, camera, extent_m, options.colours)
    return image


def _point_picture(
    backdrop: Image.Image,
    camera: Camera,
    points: NDArray[np.float64],
    attention: _Attention,
    options: SheetOptions,
    is_main: bool,
) -> Image.Image:
    """Return the points [Q, R, 3] of one layer; the inset has no numbers."""
    colours = np.repeat(attention.colours, points.shape[1], axis=0)
    # The ball of a single start point represents all later points of its query.
    radius_m = 0.32 if points.shape[1] == 1 else 0.2
    least = 0.8 * options.scale
    haze = options.colours.sky_top if is_main else None
    balls = seen_balls(points.reshape(-1, 3), colours, camera, radius_m, least, haze)
    picture = draw_balls(backdrop, balls)
    if not is_main:
        return picture
    return _number(picture, camera, attention, points, max(2.0, 3.6 * options.scale))


def _legend(
    view: SampleView, attention: _Attention, options: SheetOptions
) -> list[tuple[str, RGB]]:
    """Return the classes that occur, the queries without a prediction, and the key of numbers."""
    colours = class_colours(view.class_names, options.palette)
    entries = [
        (pretty_name(view.class_names[c]), (int(r), int(g), int(b)))
        for c, (r, g, b) in enumerate(colours)
        if (attention.labels == c).any()
    ]
    return [*entries, ("ends in free space", _FREE_COLOUR)]
