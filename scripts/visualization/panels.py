"""Rendered panels of a sheet: one view, with a bird's-eye inset unless the view is from above."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from scripts.visualization.camera import VIEWS, Camera
from scripts.visualization.difference import difference_colours, difference_grid
from scripts.visualization.palette import DIFFERENCE_COLOURS, RGB, Difference, Theme, class_colours
from scripts.visualization.sample_view import SampleView
from scripts.visualization.voxel_renderer import VoxelRenderer
from scripts.visualization.workers import parallel_map

# Pixels per strip, one strip per thread at a time. The strips are small enough to balance the
# threads and large enough that rows shared by neighbouring strips do not matter. With a single
# thread, larger strips save a tenth of the time.
_STRIP_PIXELS, _STRIP_PIXELS_ALONE = 60_000, 250_000


@dataclass(frozen=True)
class Panel:
    """One rendered picture of a grid.

    Attributes:
        title: its contents.
        note: a short remark next to the title.
        key: names and colours that belong only to this panel.
        image: RGB.
    """

    title: str
    note: str
    key: tuple[tuple[str, RGB], ...]
    image: Image.Image


@dataclass(frozen=True)
class _Subject:
    title: str
    note: str
    key: tuple[tuple[str, RGB], ...]
    grid: NDArray[np.uint8]
    colours: NDArray[np.uint8]
    empty_label: int


def _count_note(grid: NDArray[np.uint8], empty_label: int) -> str:
    return f"{int((grid != empty_label).sum()):,} voxels"


def _subjects(view: SampleView, with_difference: bool, palette: str) -> list[_Subject]:
    colours = class_colours(view.class_names, palette)
    subjects = []
    for title, grid in (("Prediction", view.prediction), ("Ground truth", view.truth)):
        if grid is not None:
            note = _count_note(grid, view.empty_label)
            subjects.append(_Subject(title, note, (), grid, colours, view.empty_label))
    if with_difference and view.prediction is not None and view.truth is not None:
        grid = difference_grid(view.prediction, view.truth, view.empty_label, view.scored)
        present = [name for i, name in enumerate(DIFFERENCE_COLOURS) if (grid == i).any()]
        key = tuple((name, DIFFERENCE_COLOURS[name]) for name in present)
        subjects.append(
            _Subject("Difference", "", key, grid, difference_colours(), int(Difference.FREE))
        )
    return subjects


def panel_count(view: SampleView, with_difference: bool) -> int:
    """Return the number of panels that `render_panels` makes."""
    count = (view.prediction is not None) + (view.truth is not None)
    return count + (with_difference and count == 2)


def render_panels(
    view: SampleView,
    size: tuple[int, int],
    theme: Theme,
    with_difference: bool,
    palette: str = "field",
    camera: str = "chase",
    turn: float = 0.0,
) -> list[Panel]:
    """Draw the available panels of a sample: prediction, ground truth and their difference.

    Args:
        view: the sample.
        size: width and height of each panel in pixels.
        theme: background colours.
        with_difference: whether to compare prediction and ground truth.
        palette: palette of the classes.
        camera: name in `scripts.visualization.camera.VIEWS`.
        turn: turn of the orbiting camera, as a share of the full circle.
    """
    subjects = _subjects(view, with_difference, palette)
    renderers = parallel_map(lambda subject: _build_renderer(subject, view, theme), subjects)
    extent = extent_m(view)
    side = round(0.30 * size[1])
    shots = [VIEWS[camera](*size, extent, turn)]
    if camera != "top":
        shots.append(VIEWS["top"](side, side, extent, 0.0))
    pictures = render_all([(renderer, shot) for renderer in renderers for shot in shots])
    panels = []
    for i, subject in enumerate(subjects):
        first = i * len(shots)
        image, *insets = (Image.fromarray(p) for p in pictures[first : first + len(shots)])
        for inset in insets:
            paste_inset(image, inset, theme)
        panels.append(Panel(subject.title, subject.note, subject.key, image))
    return panels


def _build_renderer(subject: _Subject, view: SampleView, theme: Theme) -> VoxelRenderer:
    return VoxelRenderer(
        subject.grid,
        view.grid_min,
        view.voxel_size,
        subject.empty_label,
        subject.colours,
        theme,
        ego2grid=view.ego2grid,
    )


def render_all(
    shots: Sequence[tuple[VoxelRenderer, Camera]],
) -> list[NDArray[np.uint8]]:
    """Draw several pictures in parallel, cut into strips for the threads.

    Args:
        shots: renderer and camera of each picture.

    Returns:
        uint8 [H, W, 3] for each.
    """
    most = _STRIP_PIXELS if torch.get_num_threads() > 1 else _STRIP_PIXELS_ALONE
    strips = []
    for number, (_, camera) in enumerate(shots):
        rows = max(16, most // camera.width)
        for first in range(0, camera.height, rows):
            strips.append((number, first, min(first + rows, camera.height)))

    def draw(strip: tuple[int, int, int]) -> NDArray[np.uint8]:
        number, first, last = strip
        renderer, camera = shots[number]
        return renderer.render_rows(camera, first, last)

    drawn = parallel_map(draw, strips)
    return [
        np.concatenate([d for d, s in zip(drawn, strips, strict=True) if s[0] == number])
        for number in range(len(shots))
    ]


def extent_m(view: SampleView) -> float:
    """Return half the longer horizontal side of the grid."""
    grid = view.prediction if view.prediction is not None else view.truth
    if grid is None:
        return 0.0
    return 0.5 * max(grid.shape[0] * view.voxel_size[0], grid.shape[1] * view.voxel_size[1])


def paste_inset(image: Image.Image, inset: Image.Image, theme: Theme) -> None:
    """Paste a bird's-eye view into the upper right corner, where other views are mostly empty."""
    margin = round(0.018 * image.height)
    line = max(1, round(image.height / 400))
    left, top = image.width - margin - inset.width, margin
    image.paste(inset, (left, top))
    frame = (left - line, top - line, left + inset.width + line - 1, top + inset.height + line - 1)
    ImageDraw.Draw(image).rectangle(frame, outline=theme.rule, width=line)
