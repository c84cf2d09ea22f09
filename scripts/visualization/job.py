"""Job of an output format: source, choice of samples, output folder and style."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from importlib import import_module
from itertools import groupby
from pathlib import Path
from typing import Protocol

import numpy as np

from scripts.visualization.sample_view import Moment, SampleView
from scripts.visualization.sheet import SheetOptions

FORMATS = {
    "png": "scripts.visualization.sheet_files",
    "mp4": "scripts.visualization.film",
    "gif": "scripts.visualization.film",
    "rrd": "scripts.visualization.recording",
    "html": "scripts.visualization.web_page",
}
"""Module of each format; its `write(job: Job) -> list[Path]` returns the files written.

Modules are imported on demand, because each format needs other libraries.
"""


class ViewSource(Protocol):
    """Source of samples to draw."""

    def __len__(self) -> int:
        """Return the number of samples."""

    def view(self, index: int) -> SampleView:
        """Return one sample."""

    def moment(self, index: int) -> Moment:
        """Return when and where a sample was recorded, without loading it."""


@dataclass(frozen=True)
class Job:
    """One call of a format's `write`.

    Attributes:
        source: the samples.
        indices: samples to draw, at least one, in order.
        out: folder for the files; exists.
        title: name of the config.
        format: name in `FORMATS`.
        options: size and style; formats other than pictures use only what applies to them.
        fps: pictures per second of a film.
        report: receives one line per file.
    """

    source: ViewSource
    indices: Sequence[int]
    out: Path
    title: str
    format: str = "png"
    options: SheetOptions = field(default_factory=SheetOptions)
    fps: float = 12.0
    report: Callable[[str], None] = print

    def run(self) -> list[Path]:
        """Write the files; return their paths."""
        files: list[Path] = import_module(FORMATS[self.format]).write(self)
        return files

    def clips(self) -> list[tuple[str, list[int]]]:
        """Return the samples by scene, each with its name, for formats with one file per scene."""
        names = {index: self.source.moment(index).scene_name for index in self.indices}
        # In order of first occurrence.
        rank = {name: i for i, name in enumerate(dict.fromkeys(names.values()))}
        ordered = sorted(self.indices, key=lambda index: rank[names[index]])
        return [(name, list(group)) for name, group in groupby(ordered, key=names.__getitem__)]

    def file(self, name: str) -> Path:
        """Return the path of an output file; unusual characters of the name become `_`."""
        return self.out / re.sub(r"[^\w.-]+", "_", name)


def spread(count: int, total: int) -> list[int]:
    """Return `count` indices spread evenly over `range(total)`: both ends, no duplicates."""
    if count >= total:
        return list(range(total))
    return sorted({int(i) for i in np.round(np.linspace(0, total - 1, count))})
