"""Results of the Inferencer.

Legend: n occupied voxels, X, Y, Z voxels along the axes, T frames of a prediction.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import numpy.typing as npt

from loaders.metrics.occupancy import dense_labels

if TYPE_CHECKING:
    from PIL import Image

    from scripts.prediction.frames import Frame


@dataclass(frozen=True)
class Grid:
    """Grid of the voxels, and the classes of their labels.

    Attributes:
        pc_range: (x0, y0, z0, x1, y1, z1) metres, in the frame of the grid.
        voxel_size: (dx, dy, dz) metres.
        shape: Voxels (X, Y, Z).
        frame: Frame of the grid: 'ego' or 'lidar'.
        class_names: Classes in label order.
    """

    pc_range: tuple[float, ...]
    voxel_size: tuple[float, ...]
    shape: tuple[int, int, int]
    frame: Literal["ego", "lidar"]
    class_names: tuple[str, ...]

    @property
    def empty_label(self) -> int:
        """Return the label of free voxels in dense grids: the one after the last class."""
        return len(self.class_names)

    def centres(self, coords: npt.NDArray[np.int64]) -> npt.NDArray[np.float64]:
        """Return the centres [n, 3] of voxels [n, 3], metres in the frame of the grid."""
        return self.low + (coords + 0.5) * np.asarray(self.voxel_size)

    @property
    def low(self) -> npt.NDArray[np.float64]:
        """Return the lower corner [3], metres."""
        return np.asarray(self.pc_range[:3], dtype=np.float64)


@dataclass(frozen=True)
class OccupancyResult:
    """The occupied voxels around the vehicle at the time of one frame.

    Attributes:
        coords: int64 [n, 3], voxel indices (x, y, z), each voxel once.
        labels: int64 [n], indices into `grid.class_names`.
        scores: float32 [n], from 0 to 1.
        grid: Positions of the voxels.
        name: Name of the frame.
        time_s: Time of the frame.
        frame_times_s: Times of the T frames of the prediction, the current one first.
        dropped_cameras: Cameras without an image, to the age in seconds of the older image that
            was used, or None if the camera was left out.
        changed_cameras: Cameras whose calibration or image size differs from the frame before.
        ego2global: float64 [4, 4], the pose of the vehicle.
        ego2grid: float64 [4, 4], the vehicle's frame to that of the grid.
    """

    coords: npt.NDArray[np.int64]
    labels: npt.NDArray[np.int64]
    scores: npt.NDArray[np.float32]
    grid: Grid
    name: str = ""
    time_s: float = 0.0
    frame_times_s: tuple[float, ...] = ()
    dropped_cameras: Mapping[str, float | None] = field(default_factory=dict)
    changed_cameras: tuple[str, ...] = ()
    ego2global: npt.NDArray[np.float64] = field(default_factory=lambda: np.eye(4))
    ego2grid: npt.NDArray[np.float64] = field(default_factory=lambda: np.eye(4))

    def __len__(self) -> int:
        """Return the number of occupied voxels."""
        return len(self.labels)

    def __repr__(self) -> str:
        grid = self.grid
        counts = np.bincount(self.labels, minlength=len(grid.class_names))
        most = [int(i) for i in np.argsort(-counts, kind="stable")[:3] if counts[i]]
        names = ", ".join(f"{grid.class_names[i]} {counts[i]:,}" for i in most)
        text = f"OccupancyResult({self.name or f'{self.time_s:g} s'}: {len(self):,} voxels"
        text += f" of {grid.shape}{f' ({names}, ...)' if names else ''}"
        if self.dropped_cameras:
            text += f"; dropped cameras: {', '.join(self.dropped_cameras)}"
        return text + ")"

    def dense(self) -> npt.NDArray[np.uint8]:
        """Return Occ3D's label grid uint8 [X, Y, Z]; free voxels have `grid.empty_label`."""
        grid: npt.NDArray[np.uint8] = dense_labels(
            self.coords, self.labels, self.grid.shape, self.grid.empty_label
        )
        return grid

    def centres(self) -> npt.NDArray[np.float64]:
        """Return the centres of the voxels, float64 [n, 3], metres in the frame of the grid."""
        return self.grid.centres(self.coords)

    def save(
        self,
        path: str | os.PathLike[str],
        *,
        dense: bool = False,
        mesh: bool = False,
        frame: Frame | None = None,
        **style: Any,
    ) -> Path:
        """Write the result to a file in one step; the suffix selects the format.

        - `.npz`: `coords`, `labels` and `scores` of the occupied voxels, and the grid; or
          with `dense` the label grid `semantics` [X, Y, Z] of Occ3D. ``val.py
          --predictions`` reads both.
        - `.ply`: coloured points at the centres of the voxels, with label and score; or with
          `mesh` the faces between occupied and free voxels. Metres, frame of the grid.
        - `.png`: a picture, see `draw`.
        - `.html`: a page that shows the voxels in a browser, without a network.
        - `.rrd`: a Rerun recording.

        Args:
            path: The file.
            dense: See above.
            mesh: See above.
            frame: Frame with the images to show in pictures and pages.
            style: See `draw`.

        Returns:
            The path.

        Raises:
            ConfigError: Another ending, an option that the format does not have, or a file that
                cannot be written.
        """
        from scripts.inference.files import save_result

        return save_result(self, Path(path), dense=dense, mesh=mesh, frame=frame, style=style)

    def draw(self, frame: Frame | None = None, **style: Any) -> Image.Image:
        """Draw the result.

        Args:
            frame: Frame with the images to show above it; None shows none.
            style: `view` ('chase', 'top', 'front'), `scale`, `theme` ('light', 'dark'),
                `palette` ('field', 'safe'), `overlay` (whether to draw the voxels over the
                images).

        Returns:
            A picture, RGB.
        """
        from scripts.inference.pictures import draw_result

        return draw_result(self, frame, style)

    def viewer(self, height: int = 520, **style: Any) -> Any:
        """Return the result in a viewer for the output of a notebook cell.

        Args:
            height: Pixels.
            style: See `draw`.
        """
        from scripts.inference.pictures import InlineViewer

        return InlineViewer([self], height, style)
