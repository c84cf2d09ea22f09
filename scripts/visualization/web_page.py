"""HTML output: a page per scene that shows its voxels in any browser, without a network.

The page contains everything: three.js, the viewer of `web/` and the packed voxels of all samples.
See `web/main.js` for its functions.

Dimension letters: X, Y, Z voxels of a grid; V occupied voxels.
"""

from __future__ import annotations

import base64
import gzip
import html
import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from tqdm import tqdm

from scripts.runtime.atomic_write import write_atomically
from scripts.runtime.errors import ConfigError
from scripts.visualization.difference import difference_colours, difference_grid
from scripts.visualization.ego_car import car_faces
from scripts.visualization.job import Job
from scripts.visualization.palette import (
    DIFFERENCE_COLOURS,
    RGB,
    THEMES,
    class_colours,
    pretty_name,
)
from scripts.visualization.panels import extent_m
from scripts.visualization.sample_view import CameraImage, SampleView, panorama, short_name
from scripts.visualization.voxel_renderer import RenderStyle

_WEB = Path(__file__).parent / "web"
_VENDOR = _WEB / "vendor" / "three-0.180.0"
# Modules by their import names; the minified ones are packed.
_LIBRARIES = {
    "three-core": "three.core.min.js",
    "three": "three.module.min.js",
    "three/addons/controls/OrbitControls.js": "OrbitControls.js",
}
_MODULES = ("voxels", "shaders", "stage", "main")
_IMAGE_WIDTH, _IMAGE_QUALITY = 480, 80
# A voxel's position on the graphics card: 10 bits for x and y, 8 for z.
_MOST_VOXELS = (1024, 1024, 256)


def write(job: Job) -> list[Path]:
    """Write one page per scene.

    Raises:
        ConfigError: the grid is larger than the page can show.
    """
    files = []
    for scene, indices in job.clips():
        path = job.file(f"{scene}.html")
        page = _Page(job, scene, len(indices))
        for index in tqdm(indices, desc=path.name, unit="sample"):
            page.add(job.source.view(index))
        text = page.text()
        write_atomically(path, lambda file, text=text: file.write_text(text, encoding="utf-8"))  # type: ignore[misc]
        size = path.stat().st_size / 2**20
        job.report(f"{path}  ({len(indices)} samples, {size:.1f} MiB)")
        files.append(path)
    return files


def pack_steps(indices: NDArray[np.int64]) -> bytes:
    """Encode sorted numbers as the steps between them, starting from zero.

    Args:
        indices: [V], strictly increasing, not negative.

    Returns:
        One byte per step; 255 means "add 255 and continue with the next byte".
    """
    steps = np.diff(indices, prepend=0)
    extra = steps // 255
    packed = np.full(int((extra + 1).sum()), 255, dtype=np.uint8)
    packed[np.cumsum(extra + 1) - 1] = steps % 255
    return packed.tobytes()


class _Page:
    """Collector of a page's samples.

    Args:
        job: the job.
        scene: name of the scene.
        count: number of samples to come.
    """

    def __init__(self, job: Job, scene: str, count: int) -> None:
        self._job, self._scene, self._count = job, scene, count
        self._data = bytearray()
        self._frames: list[dict[str, Any]] = []
        self._first: SampleView | None = None

    def add(self, view: SampleView) -> None:
        """Add one sample."""
        if self._first is None:
            self._first = view
            _check_size(view)
        pose = view.ego2global.copy()
        # Browsers compute in float32, so large map coordinates are avoided.
        pose[:3, 3] -= self._first.ego2global[:3, 3]
        position = f"sample {len(self._frames) + 1} of {self._count}"
        self._frames.append(
            {
                "title": "  ·  ".join(filter(None, [position, view.sample_token])),
                "time": (view.time_us - self._first.time_us) * 1e-6,
                "scores": view.scores,
                "pose": _rounded(pose),
                "ego2grid": _rounded(view.ego2grid),
                "cameras": [_thumbnail(camera) for camera in panorama(view.images)],
                "grids": [self._add_grid(view, layer) for layer in _layers(view)],
            }
        )

    def _add_grid(self, view: SampleView, layer: str) -> dict[str, tuple[int, int]]:
        """Append a grid's voxels; return their position."""
        grid, free = _label_grid(view, layer)
        indices = np.flatnonzero(grid.reshape(-1) != free)
        labels = grid.reshape(-1)[indices].astype(np.uint8)
        return {
            "steps": self._append(pack_steps(indices)),
            "labels": self._append(labels.tobytes()),
        }

    def _append(self, content: bytes) -> tuple[int, int]:
        start = len(self._data)
        self._data += content
        return start, len(content)

    def text(self) -> str:
        """Return the page."""
        assert self._first is not None
        options = self._job.options
        fields = {
            "theme": options.theme,
            "title": html.escape(f"{self._scene} · {self._job.title}"),
            "theme_variables": _theme_variables(),
            "style": _asset("style.css"),
            "meta": json.dumps(self._meta(self._first)).replace("<", "\\u003c"),
            "modules": _module_elements(),
            "bootstrap": _asset("bootstrap.js"),
            "data": _packed(bytes(self._data)),
        }
        page = _asset("page.html")
        for name, value in fields.items():
            page = page.replace("{{" + name + "}}", value, 1)
        return page

    def _meta(self, view: SampleView) -> dict[str, Any]:
        grid, _ = _label_grid(view, _layers(view)[0])
        return {
            "title": f"{self._scene}  ·  {self._job.title}",
            "view": self._job.options.view,
            "shape": grid.shape,
            "gridMin": view.grid_min,
            "voxelSize": view.voxel_size,
            "extent": extent_m(view),
            "toSun": RenderStyle().to_sun,
            "layers": [
                _layer_description(view, layer, self._job.options.palette)
                for layer in _layers(view)
            ],
            "frames": self._frames,
            "car": self._add_car(),
        }

    def _add_car(self) -> dict[str, Any]:
        faces = car_faces()
        place = faces.cells.astype(np.uint32)
        packed = place[:, 0] | place[:, 1] << 10 | place[:, 2] << 20
        packed |= faces.faces.astype(np.uint32) << 28
        return {
            "cells": self._append(packed.astype("<u4").tobytes()),
            "labels": self._append(faces.labels.astype(np.uint8).tobytes()),
            "normals": self._append(np.round(faces.normals * 127).astype(np.int8).tobytes()),
            "colours": faces.colours.tolist(),
            "min": faces.grid_min,
            "voxel": faces.voxel_m,
        }


def _check_size(view: SampleView) -> None:
    grid, _ = _label_grid(view, _layers(view)[0])
    if any(n > most for n, most in zip(grid.shape, _MOST_VOXELS, strict=True)):
        raise ConfigError(
            f"a page shows grids of up to {_MOST_VOXELS} voxels, but this one has {grid.shape}: "
            "choose a larger voxel_size or another --format"
        )


def _layers(view: SampleView) -> list[str]:
    """Return the layers that the page can show."""
    layers = ["prediction"] if view.prediction is not None else []
    if view.truth is not None:
        layers.append("truth")
    if len(layers) == 2:
        layers.append("difference")
    return layers


def _label_grid(view: SampleView, layer: str) -> tuple[NDArray[np.uint8], int]:
    """Return the labels [X, Y, Z] of a layer, and the label of free voxels."""
    if layer == "difference":
        assert view.prediction is not None and view.truth is not None
        grid = difference_grid(view.prediction, view.truth, view.empty_label, view.scored)
        return grid, len(DIFFERENCE_COLOURS)
    found = view.prediction if layer == "prediction" else view.truth
    assert found is not None
    return found, view.empty_label


def _layer_description(view: SampleView, layer: str, palette: str) -> dict[str, Any]:
    if layer == "difference":
        names: Sequence[str] = list(DIFFERENCE_COLOURS)
        return {
            "name": "Difference",
            "key": "Difference",
            "names": names,
            "colours": difference_colours().tolist(),
            "isClasses": False,
        }
    return {
        "name": "Prediction" if layer == "prediction" else "Ground truth",
        "key": "Classes",
        "names": [pretty_name(name) for name in view.class_names],
        "colours": class_colours(view.class_names, palette).tolist(),
        "isClasses": True,
    }


def _thumbnail(camera: CameraImage) -> dict[str, str]:
    """Return a camera image of moderate size as a data URL."""
    picture = camera.image.convert("RGB")
    width = min(_IMAGE_WIDTH, picture.width)
    height = round(width * picture.height / picture.width)
    small = picture.resize((width, height), Image.Resampling.LANCZOS)
    encoded = io.BytesIO()
    small.save(encoded, "JPEG", quality=_IMAGE_QUALITY)
    url = "data:image/jpeg;base64," + base64.b64encode(encoded.getvalue()).decode()
    name = short_name(camera.name).replace("_", " ").lower()
    return {"name": name, "image": url}


def _rounded(matrix: NDArray[np.float64]) -> list[float]:
    """Return a matrix [4, 4] row by row, rounded to a micrometre."""
    return [round(float(value), 6) for value in matrix.reshape(-1)]


def _asset(name: str) -> str:
    return (_WEB / name).read_text(encoding="utf-8")


def _packed(content: bytes) -> str:
    # Without a time stamp, so that the same samples result in the same page.
    return base64.b64encode(gzip.compress(content, 9, mtime=0)).decode()


def _module_elements() -> str:
    """Return script elements with the libraries (packed) and the viewer's modules (readable)."""
    elements = []
    for name, file in _LIBRARIES.items():
        source = (_VENDOR / file).read_text(encoding="utf-8")
        # A module from a blob has no folder, so relative names cannot be resolved.
        source = source.replace('"./three.core.min.js"', '"three-core"')
        elements.append(
            f'<script type="text/plain" data-module="{name}" data-packed="gzip">'
            f"{_packed(source.encode())}</script>"
        )
    licence = (_VENDOR / "LICENSE").read_text(encoding="utf-8")
    elements.append(f"<!-- three.js:\n{licence}-->")
    for name in _MODULES:
        source = _asset(f"{name}.js")
        elements.append(
            f'<script type="text/plain" data-module="viewer/{name}">\n{source}</script>'
        )
    return "\n".join(elements)


def _theme_variables() -> str:
    """Return the colours of the themes as CSS custom properties."""

    def css(colour: RGB, alpha: float = 1.0) -> str:
        return f"rgb({colour[0]} {colour[1]} {colour[2]} / {alpha:g})"

    blocks = []
    for name, theme in THEMES.items():
        dark = sum(theme.page) < 384
        values = {
            "sky-top": css(theme.sky_top),
            "sky-bottom": css(theme.sky_bottom),
            "text": css(theme.text),
            "muted": css(theme.muted),
            "rule": css(theme.rule, 0.7),
            "panel": css(theme.page, 0.86),
            "raised": css((70, 79, 92) if dark else (255, 255, 255)),
            "well": css((255, 255, 255), 0.08) if dark else css((20, 30, 45), 0.07),
            "hover": css((255, 255, 255), 0.09) if dark else css((20, 30, 45), 0.06),
            "accent": css((79, 179, 217) if dark else (0, 114, 190)),
        }
        rules = " ".join(f"--{key}: {value};" for key, value in values.items())
        blocks.append(f'html[data-theme="{name}"] {{ {rules} }}')
    return "\n".join(blocks)
