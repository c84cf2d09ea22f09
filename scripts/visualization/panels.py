"""Rendered panels of a sheet: chase view with a bird's-eye inset."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from scripts.visualization.camera import VIEWS
from scripts.visualization.difference import difference_colours, difference_grid
from scripts.visualization.palette import DIFFERENCE_COLOURS, RGB, Difference, Theme, class_colours
from scripts.visualization.sample_view import SampleView
from scripts.visualization.voxel_renderer import VoxelRenderer


@dataclass(frozen=True)
class Panel:
    """One rendered picture of a grid.

    Attributes:
        title: what it shows.
        note: a short remark beside the title.
        key: names and colours that belong to this panel alone.
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


def _subjects(view: SampleView, with_difference: bool) -> list[_Subject]:
    colours = class_colours(view.class_names)
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
    """Number of panels that :func:`render_panels` makes."""
    return len(_subjects(view, with_difference))


def render_panels(
    view: SampleView, size: tuple[int, int], theme: Theme, with_difference: bool
) -> list[Panel]:
    """Draw prediction, ground truth and their difference, as far as the sample has them.

    Args:
        view: the sample.
        size: width and height of each panel in pixels.
        theme: background colours.
        with_difference: whether to compare prediction and ground truth.
    """
    subjects = _subjects(view, with_difference)
    # The arithmetic of a panel is done in pieces too small for torch's own threads, so panels are
    # drawn side by side instead; torch and the ray caster release the interpreter lock.
    with ThreadPoolExecutor(max(1, min(len(subjects), torch.get_num_threads()))) as pool:
        return list(pool.map(lambda subject: _render(subject, view, size, theme), subjects))


def _render(subject: _Subject, view: SampleView, size: tuple[int, int], theme: Theme) -> Panel:
    renderer = VoxelRenderer(
        subject.grid,
        view.grid_min,
        view.voxel_size,
        subject.empty_label,
        subject.colours,
        theme,
        ego2grid=view.ego2grid,
    )
    extent = _extent_m(view.grid_min, view.voxel_size, subject.grid.shape)
    image = Image.fromarray(renderer.render(VIEWS["chase"](*size, extent)))
    _paste_inset(image, renderer, extent, theme)
    return Panel(subject.title, subject.note, subject.key, image)


def _extent_m(
    grid_min: Sequence[float], voxel_size: Sequence[float], shape: Sequence[int]
) -> float:
    """Half the longer horizontal side of the grid."""
    return 0.5 * max(shape[0] * voxel_size[0], shape[1] * voxel_size[1])


def _paste_inset(image: Image.Image, renderer: VoxelRenderer, extent: float, theme: Theme) -> None:
    """Bird's-eye view in the upper right corner, where the chase view shows only background."""
    side = round(0.30 * image.height)
    margin = round(0.018 * image.height)
    line = max(1, round(image.height / 400))
    inset = Image.fromarray(renderer.render(VIEWS["top"](side, side, extent)))
    left, top = image.width - margin - side, margin
    frame = (left - line, top - line, left + side + line - 1, top + side + line - 1)
    ImageDraw.Draw(image).rectangle(frame, fill=theme.page)
    image.paste(inset, (left, top))
    ImageDraw.Draw(image).rectangle(frame, outline=theme.rule, width=line)
