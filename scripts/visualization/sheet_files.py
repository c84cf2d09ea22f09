"""PNG output: one sheet per chosen sample, optionally one of the queries, and an overview."""

from __future__ import annotations

import time
from pathlib import Path

from PIL import Image

from scripts.runtime.atomic_write import write_atomically
from scripts.visualization.job import Job, spread
from scripts.visualization.overview import Tile, compose_overview, make_tile
from scripts.visualization.points_sheet import compose_points_sheet
from scripts.visualization.sheet import compose_sheet, legend_entries

MAX_TILES = 24
"""Maximum number of samples in the overview, spread evenly over the drawn samples."""


def write(job: Job) -> list[Path]:
    """Write one sheet per sample and an overview.

    Returns:
        The files written: sheets in the order of the job's indices, then the overview.
    """
    out, options, indices = job.out, job.options, job.indices
    # Pictures of several views can be in the same folder.
    suffix = "" if options.view == "chase" else f"_{options.view}"
    in_overview = {indices[i] for i in spread(MAX_TILES, len(indices))}
    files: list[Path] = []
    tiles: list[Tile] = []
    class_names: tuple[str, ...] = ()
    for number, index in enumerate(indices):
        start = time.monotonic()
        view = job.source.view(index)
        loaded = time.monotonic()
        sheet = compose_sheet(view, options)
        files.append(save_png(sheet.image, out / f"{view.file_stem}{suffix}.png"))
        if view.queries is not None:
            points = compose_points_sheet(view, options)
            files.append(save_png(points, out / f"{view.file_stem}{suffix}_points.png"))
        if index in in_overview:
            tiles.append(make_tile(view, sheet.panels, options))
        class_names = view.class_names
        job.report(
            f"[{number + 1}/{len(indices)}] {files[-1]}  "
            f"(sample {loaded - start:.1f} s, drawing {time.monotonic() - loaded:.1f} s)"
        )
    heading = f"{job.title}  ·  {len(tiles)} of {len(job.source)} samples"
    legend = legend_entries(class_names, options.palette)
    overview = compose_overview(tiles, heading, legend, options)
    files.append(save_png(overview, out / f"overview{suffix}.png"))
    job.report(f"overview: {files[-1]}")
    return files


def save_png(image: Image.Image, path: Path) -> Path:
    """Write a PNG; an incomplete file never gets the final name."""
    # After PNG's own filters, mostly runs of one byte repeat. Searching only for these (zlib's
    # Z_RLE) gives smaller files than level 2, in four fifths of its time.
    options = {"format": "PNG", "compress_level": 2, "compress_type": 3}
    return write_atomically(path, lambda file: image.save(file, **options))
