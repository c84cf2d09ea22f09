"""Overview: a grid of the drawn samples."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from PIL import Image, ImageDraw

from scripts.runtime.errors import ConfigError
from scripts.visualization.palette import RGB
from scripts.visualization.panels import Panel
from scripts.visualization.sample_view import SampleView
from scripts.visualization.sheet import SheetOptions
from scripts.visualization.text import colour_key_rows, draw_colour_key, draw_text, text_width

_MARGIN, _GAP, _ROW_GAP = 24, 6, 16
_TITLE_HEIGHT, _CAPTION_HEIGHT, _KEY_ROW_HEIGHT = 46, 26, 24
_TITLE_SIZE, _CAPTION_SIZE, _KEY_SIZE = 20, 13, 13
_THUMBNAIL_WIDTH = 300
_MAX_WIDTH = 1860


@dataclass(frozen=True)
class Tile:
    """One sample of the overview.

    Attributes:
        title: e.g. scene and sample.
        scores: name and value in percent.
        pictures: name and thumbnail of each panel.
    """

    title: str
    scores: tuple[tuple[str, float], ...]
    pictures: tuple[tuple[str, Image.Image], ...]


def make_tile(view: SampleView, panels: Sequence[Panel], options: SheetOptions) -> Tile:
    """Shrink a sheet's panels (and the front camera) to thumbnails."""
    width = options.px(_THUMBNAIL_WIDTH)
    height = round(width * panels[0].image.height / panels[0].image.width) if panels else width
    pictures = []
    front = [c for c in view.images if c.name.upper().endswith("FRONT")]
    if front:
        pictures.append(("Front camera", _fill(front[0].image.convert("RGB"), width, height)))
    for panel in panels:
        small = panel.image.resize((width, height), Image.Resampling.LANCZOS)
        pictures.append((panel.title, small))
    return Tile(view.title, view.scores, tuple(pictures))


def _fill(image: Image.Image, width: int, height: int) -> Image.Image:
    """Resize and crop around the centre to a given size."""
    factor = max(width / image.width, height / image.height)
    resized = image.resize(
        (max(width, round(image.width * factor)), max(height, round(image.height * factor))),
        Image.Resampling.LANCZOS,
    )
    left, top = (resized.width - width) // 2, (resized.height - height) // 2
    return resized.crop((left, top, left + width, top + height))


def compose_overview(
    tiles: Sequence[Tile],
    title: str,
    legend: Sequence[tuple[str, RGB]],
    options: SheetOptions | None = None,
) -> Image.Image:
    """Arrange tiles in a readable number of columns.

    Args:
        tiles: at least one.
        title: heading.
        legend: names and colours of the classes.
        options: size and style.

    Raises:
        ConfigError: there are no tiles.
    """
    if not tiles:
        raise ConfigError("an overview needs at least one sample.")
    options = options or SheetOptions()
    px, theme = options.px, options.colours
    picture_width, picture_height = tiles[0].pictures[0][1].size
    per_tile = len(tiles[0].pictures)
    tile_width = per_tile * picture_width + (per_tile - 1) * px(_GAP)
    columns = max(1, (px(_MAX_WIDTH) + px(_MARGIN)) // (tile_width + px(_MARGIN)))
    columns = min(columns, len(tiles))
    rows = -(-len(tiles) // columns)
    inner = columns * tile_width + (columns - 1) * px(_MARGIN)
    names = [name for name, _ in legend]
    key_height = colour_key_rows(names, inner, px(_KEY_SIZE)) * px(_KEY_ROW_HEIGHT)
    tile_height = px(_CAPTION_HEIGHT) + picture_height
    height = px(_TITLE_HEIGHT) + rows * tile_height + (rows - 1) * px(_ROW_GAP)
    height += px(12) + key_height + px(14)
    canvas = Image.new("RGB", (inner + 2 * px(_MARGIN), height), theme.page)
    left, middle = px(_MARGIN), px(_TITLE_HEIGHT) // 2
    draw_text(canvas, (left, middle), title, px(_TITLE_SIZE), theme.text, bold=True)
    kinds = "  |  ".join(name for name, _ in tiles[0].pictures)
    kinds_width = text_width(kinds, px(_CAPTION_SIZE))
    if text_width(title, px(_TITLE_SIZE), bold=True) + kinds_width + px(24) < inner:
        draw_text(
            canvas, (left + inner, middle), kinds, px(_CAPTION_SIZE), theme.muted, anchor="rm"
        )
    for i, tile in enumerate(tiles):
        x = left + (i % columns) * (tile_width + px(_MARGIN))
        y = px(_TITLE_HEIGHT) + (i // columns) * (tile_height + px(_ROW_GAP))
        _draw_tile(canvas, x, y, tile_width, tile, options)
    top = height - px(14) - key_height
    draw_colour_key(
        canvas, left, top, inner, legend, px(_KEY_SIZE), px(_KEY_ROW_HEIGHT), theme.text, theme.rule
    )
    return canvas


def _draw_tile(
    canvas: Image.Image, left: int, top: int, width: int, tile: Tile, options: SheetOptions
) -> None:
    px, theme = options.px, options.colours
    size = px(_CAPTION_SIZE)
    middle = top + px(_CAPTION_HEIGHT) // 2
    used = draw_text(canvas, (left, middle), tile.title, size, theme.text, bold=True)
    scores = [f"{name} {value:.1f}" for name, value in tile.scores]
    # The first scores are the most important; drop the last ones if they do not fit.
    while scores and used + text_width("   ".join(scores), size) + px(12) > width:
        scores.pop()
    if scores:
        line = "   ".join(scores)
        draw_text(canvas, (left + width, middle), line, size, theme.muted, anchor="rm")
    x, y = left, top + px(_CAPTION_HEIGHT)
    for _, picture in tile.pictures:
        canvas.paste(picture, (x, y))
        frame = (x, y, x + picture.width - 1, y + picture.height - 1)
        ImageDraw.Draw(canvas).rectangle(frame, outline=theme.rule, width=px(1))
        x += picture.width + px(_GAP)
