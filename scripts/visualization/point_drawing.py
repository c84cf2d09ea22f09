"""Points drawn as small shaded balls, and the ground below them.

Dimension letters: N points, H, W image, P pixels of a ball.
Frames: everything seen by a camera is in the ego frame (x forward, y left, z up, metres).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from scripts.visualization.camera import Camera
from scripts.visualization.palette import RGB, Theme

# Balls are drawn with this factor of supersampling.
_FINER = 2
_LIGHT = np.array([-0.42, -0.62, 0.66])  # from the upper left, towards the viewer
_MAX_RADIUS_PX = 9.0
_RINGS_M = (10, 20, 30, 40)


@dataclass(frozen=True)
class Balls:
    """Balls on an image, in any order.

    Attributes:
        pixels: float64 [N, 2] column and row of their centres.
        depth: float64 [N]; near balls hide far ones.
        radius_px: float64 [N].
        colours: float64 [N, 3] in [0, 255].
    """

    pixels: NDArray[np.float64]
    depth: NDArray[np.float64]
    radius_px: NDArray[np.float64]
    colours: NDArray[np.float64]


def seen_balls(
    points: NDArray[np.float64],
    colours: NDArray[np.uint8],
    camera: Camera,
    radius_m: float,
    least_px: float,
    haze: RGB | None = None,
) -> Balls:
    """Return the balls that are visible to a camera.

    Args:
        points: [N, 3] centres, ego frame.
        colours: uint8 [N, 3].
        camera: in the ego frame.
        radius_m: radius of every ball.
        least_px: smallest radius in pixels.
        haze: colour into which distant balls fade; None for no fading.
    """
    pixels, depth = camera.project(points)
    reach = _MAX_RADIUS_PX
    inside = (pixels > -reach) & (pixels < np.array([camera.width, camera.height]) + reach)
    seen = inside.all(axis=1) & (depth > 0.3)
    pixels, depth = pixels[seen], depth[seen]
    radius = np.clip(camera.focal_px * radius_m / depth, least_px, _MAX_RADIUS_PX)
    tone = colours[seen].astype(np.float64)
    if haze is not None and len(depth):
        near, far = float(depth.min()), float(depth.max())
        share = 0.45 * ((depth - near) / max(far - near, 1.0)) ** 2
        tone += (np.asarray(haze, dtype=np.float64) - tone) * share[:, None]
    return Balls(pixels, depth, radius, tone)


def draw_balls(image: Image.Image, balls: Balls) -> Image.Image:
    """Return the image with the balls on it, with smooth edges."""
    width, height = image.size
    fine = image.resize((width * _FINER, height * _FINER), Image.Resampling.NEAREST)
    canvas = np.array(fine)
    order = np.argsort(-balls.depth, kind="stable")
    radius = np.maximum(1, np.round(balls.radius_px[order] * _FINER)).astype(np.int64)
    middle = np.floor(balls.pixels[order] * _FINER).astype(np.int64)
    rows, columns, tones, ranks = [], [], [], []
    for size in np.unique(radius):
        members = np.nonzero(radius == size)[0]
        dx, dy, shade = _ball(int(size))
        columns.append((middle[members, :1] + dx).ravel())
        rows.append((middle[members, 1:] + dy).ravel())
        tone = balls.colours[order][members, None, :] * shade[None, :, None]
        tones.append(tone.reshape(-1, 3))
        ranks.append(np.repeat(members, len(dx)))
    if rows:
        row, column, rank = (np.concatenate(parts) for parts in (rows, columns, ranks))
        inside = (row >= 0) & (row < canvas.shape[0]) & (column >= 0) & (column < canvas.shape[1])
        # For repeated indices numpy keeps the last value, which is the nearest ball.
        last = np.argsort(rank[inside], kind="stable")
        tone = np.concatenate(tones)[inside][last].clip(0, 255).astype(np.uint8)
        canvas[row[inside][last], column[inside][last]] = tone
    return Image.fromarray(canvas).resize((width, height), Image.Resampling.BOX)


def _ball(
    radius: int,
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.float64]]:
    """Return the pixels [P] of a ball relative to its centre, and their brightness."""
    axis = np.arange(-radius, radius + 1)
    dx, dy = np.meshgrid(axis, axis)
    reach = radius + 0.25
    inside = dx**2 + dy**2 <= reach**2
    dx, dy = dx[inside], dy[inside]
    up = np.sqrt(np.clip(1.0 - (dx**2 + dy**2) / reach**2, 0.0, 1.0))
    normal = np.stack([dx / reach, dy / reach, up], axis=-1)
    shade = 0.62 + 0.46 * (normal @ _LIGHT).clip(0.0, 1.0)
    if radius <= 2:  # too small for shading
        shade = np.ones_like(shade)
    return dx, dy, shade


def draw_ground(image: Image.Image, camera: Camera, extent_m: float, theme: Theme) -> None:
    """Draw distance rings and the border of the scene on the ground, in place.

    Args:
        image: image of the camera's size.
        camera: in the ego frame.
        extent_m: half the side of the scene.
        theme: colours.
    """
    draw = ImageDraw.Draw(image)
    width = max(1, round(image.height / 360))
    angles = np.linspace(0.0, 2.0 * math.pi, 181)
    for ring in _RINGS_M:
        if ring < extent_m:
            line = np.stack([np.cos(angles), np.sin(angles), np.zeros_like(angles)], axis=1) * ring
            _draw_line(draw, camera, line, theme.rule, width)
    steps = np.linspace(-extent_m, extent_m, 41)
    for x, y in ((steps, extent_m), (steps, -extent_m), (extent_m, steps), (-extent_m, steps)):
        border = np.stack(np.broadcast_arrays(x, y, 0.0), axis=1)
        _draw_line(draw, camera, border, theme.rule, width)


def _draw_line(
    draw: ImageDraw.ImageDraw,
    camera: Camera,
    line: NDArray[np.float64],
    colour: RGB,
    width: int,
) -> None:
    pixels, depth = camera.project(line)
    # Coordinates beyond Pillow's integer range would wrap around.
    good = (depth > 0.5) & (np.abs(pixels) < 1e5).all(axis=1)
    for a, b, ok in zip(pixels[:-1], pixels[1:], good[:-1] & good[1:], strict=True):
        if ok:
            draw.line([tuple(a), tuple(b)], fill=colour, width=width)
