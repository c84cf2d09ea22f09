"""Typed view of one sample for pictures, films and viewers.

Dimension letters: Q queries, R_i points of a query after decoder layer i,
S sampling points of a query, n points, X, Y, Z voxels.
Frames: *ego* (x forward, y left, z up, metres), *grid* (the voxel grid's frame), *global* (map).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime, timezone

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from loaders.sample import UNKNOWN_LABEL

_FIRST_DATE_S = 946_684_800  # 2000-01-01 UTC


@dataclass(frozen=True)
class CameraImage:
    """One input image.

    Attributes:
        name: camera, e.g. `CAM_FRONT_LEFT`.
        image: RGB.
        ego2img: [4, 4] metres of the ego frame to pixels (u*w, v*w, w, 1) of this image, or None
            if the calibration is unknown.
    """

    name: str
    image: Image.Image
    ego2img: NDArray[np.float64] | None = None


@dataclass(frozen=True)
class Moment:
    """When and where a sample was recorded.

    Attributes:
        scene_name: e.g. `scene-0103`.
        time_us: timestamp of the key frame in microseconds.
        ego2global: [4, 4] from the ego frame to the map.
    """

    scene_name: str
    time_us: int
    ego2global: NDArray[np.float64]


@dataclass(frozen=True)
class QueryPoints:
    """Positions of a model's queries and sampling points, coarse to fine; metres, grid frame.

    Attributes:
        initial: float32 [Q, 1, 3] start positions of the queries.
        layers: float32 [Q, R_i, 3] predicted points after each decoder layer.
        sampling: float32 [Q, S, 3] sampling points of each layer in images and LiDAR map.
    """

    initial: NDArray[np.float32]
    layers: tuple[NDArray[np.float32], ...]
    sampling: tuple[NDArray[np.float32], ...] = ()


@dataclass(frozen=True)
class SampleView:
    """Sample, ready to be drawn.

    Attributes:
        index: position in the data set.
        total: size of the data set.
        scene_name: e.g. `scene-0103`.
        sample_token: nuScenes token of the key frame.
        class_names: names of the C semantic classes in label order.
        empty_label: label of free space.
        grid_min: lower corner of the grid in metres.
        voxel_size: edge lengths of a voxel in metres.
        ego2grid: [4, 4] from the ego frame to the grid's frame.
        prediction: uint8 [X, Y, Z], or None without a model.
        truth: uint8 [X, Y, Z], or None if it is not shown.
        scored: bool [X, Y, Z] voxels that the metric counts, or None for all.
        images: the input cameras of the current frame.
        scores: name and value (percent) in the order they are printed.
        time_us: timestamp of the key frame in microseconds.
        ego2global: [4, 4] from the ego frame to the map.
        lidar: float32 [n, 3] points in metres of the ego frame, or None.
        queries: points predicted by the model's queries, or None.
    """

    index: int
    total: int
    scene_name: str
    sample_token: str
    class_names: tuple[str, ...]
    empty_label: int
    grid_min: tuple[float, float, float]
    voxel_size: tuple[float, float, float]
    ego2grid: NDArray[np.float64] = field(default_factory=lambda: np.eye(4))
    prediction: NDArray[np.uint8] | None = None
    truth: NDArray[np.uint8] | None = None
    scored: NDArray[np.bool_] | None = None
    images: tuple[CameraImage, ...] = ()
    scores: tuple[tuple[str, float], ...] = ()
    time_us: int = 0
    ego2global: NDArray[np.float64] = field(default_factory=lambda: np.eye(4))
    lidar: NDArray[np.float32] | None = None
    queries: QueryPoints | None = None

    @property
    def recorded(self) -> str:
        """Time of the recording, to a tenth of a second; empty if unknown.

        Times before 2000 are those of a clock that started with the recording or the computer.
        """
        if not self.time_us:
            return ""
        seconds, rest = divmod(self.time_us, 1_000_000)
        if seconds < _FIRST_DATE_S:
            return f"{self.time_us * 1e-6:.1f} s"
        moment = datetime.fromtimestamp(seconds, tz=timezone.utc)
        return f"{moment:%Y-%m-%d %H:%M:%S}.{rest // 100_000} UTC"

    @property
    def title(self) -> str:
        """Scene, and position in the data set if there are several samples."""
        if self.total == 1:
            return self.scene_name
        return f"{self.scene_name}  ·  sample {self.index + 1} of {self.total}"

    @property
    def file_stem(self) -> str:
        """Name of this sample's files: sortable, unique, with scene and token."""
        return f"{self.index:05d}_{self.scene_name}_{self.sample_token[:8]}"


# Order of the cameras in a panorama, left to right, in one row or in two.
_ONE_ROW = ("BACK_LEFT", "FRONT_LEFT", "FRONT", "FRONT_RIGHT", "BACK_RIGHT", "BACK")
_TWO_ROWS = ("FRONT_LEFT", "FRONT", "FRONT_RIGHT", "BACK_LEFT", "BACK", "BACK_RIGHT")


def short_name(camera: str) -> str:
    """Shorten a camera name: `CAM_FRONT_LEFT` or `cam_front_left` -> `FRONT_LEFT`."""
    return camera.upper().removeprefix("CAM_")


def panorama(images: Sequence[CameraImage], single_row: bool = True) -> list[CameraImage]:
    """Return the cameras in the order of a panorama, unknown ones at the end."""
    order = _ONE_ROW if single_row else _TWO_ROWS
    rank = {name: i for i, name in enumerate(order)}
    return sorted(images, key=lambda camera: rank.get(short_name(camera.name), len(rank)))


def without_unknown(grid: NDArray[np.uint8], empty_label: int) -> NDArray[np.uint8]:
    """Return the labels [X, Y, Z] with voxels of unknown state set to free, so not drawn."""
    return np.where(grid == UNKNOWN_LABEL, np.uint8(empty_label), grid)


def dense_grid(
    coords: NDArray[np.int64],
    labels: NDArray[np.int64],
    shape: tuple[int, int, int],
    empty_label: int,
) -> NDArray[np.uint8]:
    """Convert sparse voxels to a label grid.

    Args:
        coords: [n, 3] voxel indices (x, y, z); indices outside the grid are ignored.
        labels: [n].
        shape: voxels in x, y, z.
        empty_label: label of all other voxels.

    Returns:
        uint8 [X, Y, Z].
    """
    grid = np.full(shape, empty_label, dtype=np.uint8)
    inside = ((coords >= 0) & (coords < np.asarray(shape))).all(axis=1)
    grid[tuple(coords[inside].T)] = labels[inside].astype(np.uint8)
    return grid
