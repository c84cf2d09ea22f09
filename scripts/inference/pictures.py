"""Draw results as pictures and pages, with the renderer of visualize.py."""

from __future__ import annotations

import html
import os
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from loaders.transforms.decode import decode_image, read_image
from loaders.transforms.geometry import ego2img_from_poses
from scripts.inference.result import OccupancyResult
from scripts.prediction.frames import CameraFrame, Frame
from scripts.runtime.atomic_write import check_file_target
from scripts.runtime.errors import ConfigError
from scripts.visualization.job import Job
from scripts.visualization.sample_view import CameraImage, Moment, SampleView
from scripts.visualization.sheet import SheetOptions, compose_sheet

VIEWER_SUFFIXES = (".html", ".rrd")
_STYLE = tuple(each.name for each in fields(SheetOptions))


def sheet_options(style: Mapping[str, Any]) -> SheetOptions:
    """Return the options of the renderer.

    Raises:
        ConfigError: One is unknown, or has an unusable value.
    """
    for name in style:
        if name not in _STYLE:
            raise ConfigError(f"pictures have no option '{name}': they take {', '.join(_STYLE)}")
    try:
        return SheetOptions(**style)
    except TypeError as error:
        raise ConfigError(
            f"an option of {dict(style)} has a value of another type: {error}"
        ) from error


def view_of(
    result: OccupancyResult, frame: Frame | None = None, index: int = 0, total: int = 1
) -> SampleView:
    """Convert a result to the input of the renderer.

    Args:
        result: The result.
        frame: Frame with the images to show.
        index: Position among the results that are shown together.
        total: Their number.
    """
    grid = result.grid
    low, size = grid.pc_range, grid.voxel_size
    return SampleView(
        index=index,
        total=total,
        scene_name=result.name or "prediction",
        sample_token=result.name,
        class_names=grid.class_names,
        empty_label=grid.empty_label,
        grid_min=(low[0], low[1], low[2]),
        voxel_size=(size[0], size[1], size[2]),
        ego2grid=result.ego2grid,
        prediction=result.dense(),
        images=() if frame is None else _images(frame),
        time_us=round(result.time_s * 1e6),
        ego2global=result.ego2global,
    )


def _images(frame: Frame) -> tuple[CameraImage, ...]:
    ego2global = np.eye(4) if frame.ego2global is None else np.asarray(frame.ego2global)
    return tuple(
        _image(name, camera, ego2global)
        for name, camera in frame.cameras.items()
        if camera is not None
    )


def _image(name: str, camera: CameraFrame, ego2global: Any) -> CameraImage:
    source = camera.image
    if isinstance(source, np.ndarray):
        bgr = source if camera.channel_order != "rgb" else source[:, :, ::-1]
    elif isinstance(source, (str, os.PathLike)):
        bgr = read_image(os.fspath(source))
    else:
        bgr = decode_image(bytes(source), f"of camera {name}")
    if camera.sensor2global is not None:
        pose = np.asarray(camera.sensor2global, dtype=np.float64)
    else:
        own = ego2global if camera.ego2global is None else camera.ego2global
        pose = np.asarray(own, dtype=np.float64) @ np.asarray(camera.sensor2ego, dtype=np.float64)
    ego2img = ego2img_from_poses(
        ego2global[:3, :3],
        ego2global[:3, 3],
        pose[:3, :3],
        pose[:3, 3],
        np.asarray(camera.intrinsics, dtype=np.float64),
    )
    return CameraImage(name, Image.fromarray(np.ascontiguousarray(bgr[:, :, ::-1])), ego2img)


def draw_result(
    result: OccupancyResult, frame: Frame | None, style: Mapping[str, Any]
) -> Image.Image:
    """Draw a result; see `OccupancyResult.draw`."""
    return compose_sheet(view_of(result, frame), sheet_options(style)).image


@dataclass(frozen=True)
class _Results:
    """Source of views of results."""

    results: Sequence[OccupancyResult]
    frames: Sequence[Frame | None]
    title: str

    def __len__(self) -> int:
        return len(self.results)

    def view(self, index: int) -> SampleView:
        """Return the view of one result."""
        return view_of(self.results[index], self.frames[index], index, len(self))

    def moment(self, index: int) -> Moment:
        """Return time and place of a result; all results belong to one recording."""
        result = self.results[index]
        return Moment(self.title, round(result.time_s * 1e6), result.ego2global)


def write_page(
    results: Sequence[OccupancyResult],
    path: str | os.PathLike[str],
    frames: Sequence[Frame | None] | None = None,
    **style: Any,
) -> Path:
    """Write one page that shows results of a recording on a timeline.

    Args:
        results: In the order of their times, at least one.
        path: The file: `.html` for any browser, without a network, or `.rrd` for Rerun.
        frames: For each result the frame with the images to show, or None.
        style: See `OccupancyResult.draw`.

    Raises:
        ConfigError: An unknown option, another ending, or a grid that is larger than the page can
            show.
    """
    path = Path(path)
    suffix = path.suffix.lower()
    if suffix not in VIEWER_SUFFIXES:
        raise ConfigError(f"{path} is not a page: end its name in {' or '.join(VIEWER_SUFFIXES)}")
    if not results:
        raise ConfigError(f"there is no result to write to {path}: predict at least one frame")
    frames = [None] * len(results) if frames is None else frames
    if len(frames) != len(results):
        raise ConfigError(
            f"there are {len(results)} results and {len(frames)} frames: give a frame, or None, "
            "for each result"
        )
    options = sheet_options(style)
    check_file_target("page", path)
    path.parent.mkdir(parents=True, exist_ok=True)
    # The writer names the file after its scene; it is then renamed in one step.
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=".page-") as folder:
        job = Job(
            source=_Results(results, frames, path.stem),
            indices=range(len(results)),
            out=Path(folder),
            title="predictions",
            format=suffix[1:],
            options=options,
            report=lambda line: None,
        )
        (page,) = job.run()
        os.replace(page, path)
    return path


class InlineViewer:
    """Page in the output of a notebook cell.

    Args:
        results: See `write_page`.
        height: Pixels.
        style: See `OccupancyResult.draw`.
    """

    def __init__(
        self, results: Sequence[OccupancyResult], height: int, style: Mapping[str, Any]
    ) -> None:
        self._height = height
        with tempfile.TemporaryDirectory() as folder:
            page = write_page(results, Path(folder, "prediction.html"), **style)
            self._text = page.read_text(encoding="utf-8")

    def _repr_html_(self) -> str:
        """Return the page in an iframe whose scripts cannot access the notebook."""
        return (
            f'<iframe sandbox="allow-scripts" width="100%" height="{int(self._height)}" '
            f'style="border:0" srcdoc="{html.escape(self._text)}"></iframe>'
        )
