"""Text and colour keys on a Pillow canvas, in fonts of the Python environment."""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw, ImageFont

from scripts.visualization.palette import RGB


@lru_cache(maxsize=64)
def font(size: int, bold: bool = False) -> Any:
    """Return DejaVu Sans from matplotlib's data files, or else Pillow's built-in font.

    Args:
        size: em size in pixels.
        bold: bold weight (the built-in font has none).
    """
    # Found without importing matplotlib, which is slow.
    spec = importlib.util.find_spec("matplotlib")
    if spec is not None and spec.origin is not None:
        name = "DejaVuSans-Bold.ttf" if bold else "DejaVuSans.ttf"
        path = Path(spec.origin).parent / "mpl-data" / "fonts" / "ttf" / name
        if path.is_file():
            return ImageFont.truetype(str(path), size)
    return ImageFont.load_default(size)


@lru_cache(maxsize=1024)
def text_width(text: str, size: int, bold: bool = False) -> int:
    """Return the width of `text` in pixels, rounded up."""
    return int(font(size, bold).getlength(text) + 0.999)


def draw_text(
    canvas: Image.Image,
    position: tuple[float, float],
    text: str,
    size: int,
    colour: RGB,
    bold: bool = False,
    anchor: str = "lm",
) -> int:
    """Write one line.

    Args:
        canvas: image to write on.
        position: anchor point in pixels.
        text: the line.
        size: em size in pixels.
        colour: text colour.
        bold: bold weight.
        anchor: Pillow's text anchor, by default left and middle.

    Returns:
        The width written, in pixels.
    """
    draw = ImageDraw.Draw(canvas)
    draw.text(position, text, font=font(size, bold), fill=colour, anchor=anchor)
    return text_width(text, size, bold)


def draw_swatch(
    canvas: Image.Image, left: int, middle: int, side: int, fill: RGB, rule: RGB, line: int
) -> None:
    """Draw a framed square of `fill`, given its left edge and vertical centre."""
    top = middle - side // 2
    box = (left, top, left + side - 1, top + side - 1)
    ImageDraw.Draw(canvas).rectangle(box, fill=fill, outline=rule, width=line)


def colour_key_rows(labels: Sequence[str], width: int, size: int) -> int:
    """Return the number of rows that `draw_colour_key` needs within `width` pixels."""
    return -(-len(labels) // _key_columns(labels, width, size))


def _key_columns(labels: Sequence[str], width: int, size: int) -> int:
    widest = max(text_width(label, size) for label in labels)
    fitting = max(1, width // (widest + 3 * size))
    # Balance the rows: 18 entries that fit ten to a row are drawn as nine and nine.
    rows = -(-len(labels) // fitting)
    return -(-len(labels) // rows)


def draw_colour_key(
    canvas: Image.Image,
    left: int,
    top: int,
    width: int,
    entries: Sequence[tuple[str, RGB]],
    size: int,
    row_height: int,
    text_colour: RGB,
    rule: RGB,
) -> None:
    """Draw a legend: swatches with names in aligned columns, row by row.

    Args:
        canvas: image to draw on.
        left: left edge in pixels.
        top: upper edge of the first row.
        width: pixels available.
        entries: name and colour of each entry.
        size: em size in pixels.
        row_height: distance between rows in pixels.
        text_colour: colour of the names.
        rule: colour of the swatches' frames.
    """
    labels = [name for name, _ in entries]
    columns = _key_columns(labels, width, size)
    # Each column is as wide as its widest name; the remaining width is shared evenly.
    natural = [
        max(text_width(label, size) for label in labels[c::columns]) + size * 7 // 4
        for c in range(columns)
    ]
    spare = max(0, width - sum(natural)) / max(1, columns - 1)
    lefts = [left + sum(natural[:c]) + spare * c for c in range(columns)]
    for i, (name, colour) in enumerate(entries):
        x = round(lefts[i % columns])
        middle = top + row_height * (i // columns) + row_height // 2
        draw_swatch(canvas, x, middle, size + 1, colour, rule, max(1, size // 14))
        draw_text(canvas, (x + size * 3 // 2, middle), name, size, text_colour)
