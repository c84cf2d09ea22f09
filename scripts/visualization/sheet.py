"""Compose the sheet of one sample: title and scores, cameras, panels, legend.

All lengths, also those of panels and fonts, are in pixels at scale 1 and multiplied by the scale. A
sheet at scale 3 is therefore sharp at three times the size.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from PIL import Image, ImageDraw

from scripts.runtime.errors import ConfigError
from scripts.visualization.camera import VIEWS
from scripts.visualization.overlay import overlaid_images
from scripts.visualization.palette import EGO_COLOUR, RGB, Theme, class_colours, pretty_name
from scripts.visualization.palette import theme_by_name as _theme_by_name
from scripts.visualization.panels import Panel, panel_count, render_panels
from scripts.visualization.sample_view import CameraImage, SampleView, panorama, short_name
from scripts.visualization.text import (
    colour_key_rows,
    draw_colour_key,
    draw_swatch,
    draw_text,
    text_width,
)

# Width and height of a panel by the number of panels.
_PANEL_SIZES = {0: (1120, 0), 1: (1120, 680), 2: (800, 560), 3: (640, 480)}
_MARGIN, _GAP, _CAMERA_GAP = 24, 12, 6
_TITLE_HEIGHT, _CAPTION_HEIGHT, _KEY_ROW_HEIGHT = 46, 30, 24
_TITLE_SIZE, _CAPTION_SIZE, _KEY_SIZE = 20, 15, 13


@dataclass(frozen=True)
class SheetOptions:
    """Style of sheets.

    Attributes:
        scale: size factor; at 1, sheets are 1168 (one panel) to 1992 (three) pixels wide.
        theme: name in `scripts.visualization.palette.THEMES`.
        difference: whether to add the panel that compares prediction and ground truth.
        palette: name in `scripts.visualization.palette.PALETTES`.
        view: name in `scripts.visualization.camera.VIEWS`.
        turn: turn of the orbiting camera, as a share of the full circle.
        wide: whether all cameras are in one row, even on a narrow sheet.
        overlay: whether to draw the voxels over the camera images.
    """

    scale: float = 1.0
    theme: str = "light"
    difference: bool = True
    palette: str = "field"
    view: str = "chase"
    turn: float = 0.0
    wide: bool = False
    overlay: bool = False

    def __post_init__(self) -> None:
        """Check the values.

        Raises:
            ConfigError: a scale outside of (0.2, 16), or an unknown theme, palette or view.
        """
        if not 0.2 <= self.scale <= 16:
            raise ConfigError(f"scale {self.scale:g} is not usable: set one from 0.2 to 16.")
        if self.view not in VIEWS:
            raise ConfigError(
                f"view '{self.view}' does not exist: choose one of {', '.join(VIEWS)}"
            )
        _theme_by_name(self.theme)
        class_colours((), self.palette)

    def px(self, length: float) -> int:
        """Convert a length at scale 1 to pixels of the sheet."""
        return max(1, round(length * self.scale)) if length > 0 else 0

    @property
    def colours(self) -> Theme:
        """The theme's colours."""
        return _theme_by_name(self.theme)


@dataclass(frozen=True)
class Sheet:
    """A composed sheet.

    Attributes:
        image: the whole sheet, RGB.
        panels: its panels, for the overview.
    """

    image: Image.Image
    panels: tuple[Panel, ...]


def legend_entries(class_names: Sequence[str], palette: str = "field") -> list[tuple[str, RGB]]:
    """Return the names and colours of all classes and of the ego vehicle."""
    colours = class_colours(class_names, palette)
    entries = [
        (pretty_name(name), (int(c[0]), int(c[1]), int(c[2])))
        for name, c in zip(class_names, colours, strict=True)
    ]
    return [*entries, ("ego vehicle", EGO_COLOUR)]


def compose_sheet(view: SampleView, options: SheetOptions | None = None) -> Sheet:
    """Draw and compose all contents of the sample.

    Args:
        view: the sample; its images, prediction and ground truth are optional.
        options: size and style.

    Raises:
        ValueError: a class without colour, or grids of different shapes.
    """
    options = options or SheetOptions()
    px, theme = options.px, options.colours
    count = panel_count(view, options.difference)
    panel_width, panel_height = (px(v) for v in _PANEL_SIZES[count])
    inner = count * panel_width + (count - 1) * px(_GAP) if count else panel_width
    rows = _camera_rows_of(view, inner, single_row=count >= 2, options=options)
    entries = legend_entries(view.class_names, options.palette)
    captions_height = px(_CAPTION_HEIGHT) + panel_height if count else 0
    key_height = legend_height(entries, inner, options)
    height = px(_TITLE_HEIGHT) + rows_height(rows, options) + captions_height
    height += px(12) + key_height + px(14)
    canvas = Image.new("RGB", (inner + 2 * px(_MARGIN), height), theme.page)
    left = px(_MARGIN)
    draw_title(canvas, view, options)
    top = draw_rows(canvas, rows, px(_TITLE_HEIGHT), options)
    size = (panel_width, panel_height)
    panels = render_panels(
        view, size, theme, options.difference, options.palette, options.view, options.turn
    )
    for i, panel in enumerate(panels):
        draw_panel(canvas, left + i * (panel_width + px(_GAP)), top, panel, options)
    draw_legend(canvas, top + captions_height + px(12), entries, options)
    return Sheet(canvas, tuple(panels))


def _camera_rows_of(
    view: SampleView, width: int, single_row: bool, options: SheetOptions
) -> list[list[Image.Image]]:
    gap = options.px(_CAMERA_GAP)
    if not options.overlay:
        return camera_rows(view.images, width, gap, single_row)
    # Larger, because overlaid images show more.
    images = overlaid_images(view, (width - 2 * gap) // 3, options.colours, options.palette)
    return camera_rows(images, width, gap, single_row=False)


def rows_height(rows: Sequence[Sequence[Image.Image]], options: SheetOptions) -> int:
    """Return the height of `draw_rows` in pixels."""
    return sum(row[0].height + options.px(_CAMERA_GAP) for row in rows)


def draw_rows(
    canvas: Image.Image, rows: Sequence[Sequence[Image.Image]], top: int, options: SheetOptions
) -> int:
    """Paste rows of pictures below each other; return the position below them."""
    for row in rows:
        x = options.px(_MARGIN)
        for picture in row:
            canvas.paste(picture, (x, top))
            x += picture.width + options.px(_CAMERA_GAP)
        top += row[0].height + options.px(_CAMERA_GAP)
    return top


def legend_height(entries: Sequence[tuple[str, RGB]], width: int, options: SheetOptions) -> int:
    """Return the height of `draw_legend` for `width` pixels."""
    px = options.px
    return colour_key_rows([name for name, _ in entries], width, px(_KEY_SIZE)) * px(
        _KEY_ROW_HEIGHT
    )


def draw_legend(
    canvas: Image.Image, top: int, entries: Sequence[tuple[str, RGB]], options: SheetOptions
) -> None:
    """Draw names and colours over the width of the sheet."""
    px, theme = options.px, options.colours
    left = px(_MARGIN)
    width, row = canvas.width - 2 * left, px(_KEY_ROW_HEIGHT)
    draw_colour_key(canvas, left, top, width, entries, px(_KEY_SIZE), row, theme.text, theme.rule)


def draw_title(canvas: Image.Image, view: SampleView, options: SheetOptions) -> None:
    """Draw scene, sample, time and token on the left, scores on the right."""
    px, theme = options.px, options.colours
    middle = px(_TITLE_HEIGHT) // 2
    x = px(_MARGIN)
    x += draw_text(canvas, (x, middle), view.title, px(_TITLE_SIZE), theme.text, bold=True)
    right = canvas.width - px(_MARGIN)
    for i, (name, value) in enumerate(reversed(view.scores)):
        size = px(_CAPTION_SIZE)
        right -= px(18) if i else 0
        value_text = f"{value:.1f}"
        draw_text(canvas, (right, middle), value_text, size, theme.text, bold=True, anchor="rm")
        right -= text_width(value_text, size, bold=True) + px(6)
        draw_text(canvas, (right, middle), name, size, theme.muted, anchor="rm")
        right -= text_width(name, size)
    size = px(_KEY_SIZE)
    # The token identifies the sample; it is omitted if the scores need the space.
    token = "" if view.sample_token == view.scene_name else view.sample_token
    for text, colour in ((view.recorded, theme.text), (token, theme.muted)):
        x += px(14)
        if text and x + text_width(text, size) + px(18) < right:
            x += draw_text(canvas, (x, middle + px(2)), text, size, colour)


def draw_panel(
    canvas: Image.Image, left: int, top: int, panel: Panel, options: SheetOptions
) -> None:
    """Draw a rendered picture with title, note and key above it."""
    px, theme = options.px, options.colours
    middle = top + px(_CAPTION_HEIGHT) // 2
    x = left + draw_text(
        canvas, (left, middle), panel.title, px(_CAPTION_SIZE), theme.text, bold=True
    )
    size = px(_KEY_SIZE)
    if panel.note:
        draw_text(canvas, (x + px(10), middle + px(1)), panel.note, size, theme.muted)
    right = left + panel.image.width
    for name, colour in reversed(panel.key):
        right -= text_width(name, size)
        draw_text(canvas, (right, middle), name, size, theme.text)
        right -= size * 3 // 2
        draw_swatch(canvas, right, middle, size + 1, colour, theme.rule, max(1, size // 14))
        right -= px(14)
    y = top + px(_CAPTION_HEIGHT)
    canvas.paste(panel.image, (left, y))
    frame = (left, y, left + panel.image.width - 1, y + panel.image.height - 1)
    ImageDraw.Draw(canvas).rectangle(frame, outline=theme.rule, width=px(1))


def camera_rows(
    images: Sequence[CameraImage], width: int, gap: int, single_row: bool
) -> list[list[Image.Image]]:
    """Return the cameras in panorama order, resized to fill `width` exactly, labelled."""
    if not images:
        return []
    arranged = panorama(images, single_row)
    per_row = len(arranged) if single_row else -(-len(arranged) // 2)
    rows = []
    for start in range(0, len(arranged), per_row):
        row = arranged[start : start + per_row]
        # Whole pixels; the remainder is spread from the left, so that both edges line up.
        room = width - gap * (per_row - 1)
        widths = [room // per_row + (1 if i < room % per_row else 0) for i in range(per_row)]
        first = row[0].image
        height = round(room / per_row * first.height / first.width)
        rows.append([_camera_picture(c, w, height) for c, w in zip(row, widths, strict=False)])
    return rows


def _camera_picture(camera: CameraImage, width: int, height: int) -> Image.Image:
    """Return one input image with its name in the corner."""
    image = camera.image if camera.image.mode == "RGB" else camera.image.convert("RGB")
    picture = image.resize((width, height), Image.Resampling.LANCZOS, reducing_gap=2.0)
    name = short_name(camera.name).replace("_", " ").lower()
    # Readable in a small picture, and not too large in a big one.
    size = max(7, round(min(width / 26, 8 + width / 80)))
    pad = max(2, size // 2)
    box = (0, 0, text_width(name, size) + 2 * pad, size + 2 * pad - size // 4)
    label = picture.crop(box)
    label = Image.blend(label, Image.new("RGB", label.size, (0, 0, 0)), 0.55)
    picture.paste(label, (0, 0))
    draw_text(picture, (pad, box[3] / 2), name, size, (255, 255, 255))
    return picture
