"""Draws chosen samples of a source into a folder."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Protocol

import numpy as np
from PIL import Image

from scripts.visualization.overview import Tile, compose_overview, make_tile
from scripts.visualization.sample_view import SampleView
from scripts.visualization.sheet import SheetOptions, compose_sheet, legend_entries

MAX_TILES = 24
"""Samples in the overview; of more drawn samples these many are taken, evenly spread."""


class ViewSource(Protocol):
    """Anything that has samples to draw."""

    def __len__(self) -> int:
        """Number of samples."""

    def view(self, index: int) -> SampleView:
        """One of them."""


def spread(count: int, total: int) -> list[int]:
    """``count`` indices spread evenly over ``range(total)``: both ends, no duplicates."""
    if count >= total:
        return list(range(total))
    return sorted({int(i) for i in np.round(np.linspace(0, total - 1, count))})


def draw_samples(
    source: ViewSource,
    indices: Sequence[int],
    out: Path,
    title: str,
    options: SheetOptions,
    report: Callable[[str], None] = print,
) -> list[Path]:
    """Write one sheet per sample and an overview.

    Args:
        source: the samples.
        indices: which of them to draw, at least one.
        out: folder for the PNG files; made if missing.
        title: heading of the overview.
        options: size and style.
        report: receives one line per file.

    Returns:
        The files written: sheets in the order of ``indices``, then the overview.
    """
    out.mkdir(parents=True, exist_ok=True)
    in_overview = {indices[i] for i in spread(MAX_TILES, len(indices))}
    files: list[Path] = []
    tiles: list[Tile] = []
    class_names: tuple[str, ...] = ()
    for number, index in enumerate(indices):
        start = time.monotonic()
        view = source.view(index)
        loaded = time.monotonic()
        sheet = compose_sheet(view, options)
        files.append(_save(sheet.image, out / f"{view.file_stem}.png"))
        if index in in_overview:
            tiles.append(make_tile(view, sheet.panels, options))
        class_names = view.class_names
        report(
            f"[{number + 1}/{len(indices)}] {files[-1]}  "
            f"(sample {loaded - start:.1f} s, drawing {time.monotonic() - loaded:.1f} s)"
        )
    heading = f"{title}  ·  {len(tiles)} of {len(source)} samples"
    legend = legend_entries(class_names, options.palette)
    overview = compose_overview(tiles, heading, legend, options)
    files.append(_save(overview, out / "overview.png"))
    report(f"overview: {files[-1]}")
    return files


def _save(image: Image.Image, path: Path) -> Path:
    """Write a PNG; a cut-off file never remains under its name."""
    partial = path.with_suffix(".partial")
    image.save(partial, format="PNG", compress_level=4)
    partial.replace(path)
    return path
