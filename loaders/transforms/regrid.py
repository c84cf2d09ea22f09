"""Conversion of labels from the grid of their files to the grid of a config: crop and pooling.

Legend: X Y Z voxels of the requested grid, n labelled voxels of a file, K semantic classes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from loaders.errors import LoaderConfigError
from loaders.sample import UNKNOWN_LABEL

IntArray = npt.NDArray[np.integer[Any]]

# Ranges and sizes are decimal fractions of metres; their rounding errors are below this.
_TOLERANCE_VOXELS = 1e-3


@dataclass(frozen=True)
class LabelWindow:
    """Position of the requested grid in the grid of the label files.

    Attributes:
        offset: First voxel (x, y, z) of the file's grid that belongs to the requested grid.
        factor: Number of file voxels per requested voxel, along each axis.
        shape: (X, Y, Z).
    """

    offset: tuple[int, int, int]
    factor: tuple[int, int, int]
    shape: tuple[int, int, int]

    @property
    def is_pooled(self) -> bool:
        """Whether requested voxels are larger than the file's."""
        return self.factor != (1, 1, 1)

    def crop(self, grid: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """Return the part of a file's dense grid inside the window, a view at file resolution."""
        return grid[
            tuple(
                slice(start, start + count * step)
                for start, count, step in zip(self.offset, self.shape, self.factor, strict=True)
            )
        ]


def label_window(
    label_range: Sequence[float],
    label_voxel_size: Sequence[float],
    pc_range: Sequence[float],
    voxel_size: Sequence[float],
) -> LabelWindow:
    """Find the requested grid in the grid of the label files.

    Args:
        label_range: (x0, y0, z0, x1, y1, z1) of the files' grid, metres.
        label_voxel_size: (dx, dy, dz) of the files' voxels, metres.
        pc_range: Range of the requested grid, inside the range of the files.
        voxel_size: Size of the requested voxels, integer multiples of `label_voxel_size`.

    Raises:
        LoaderConfigError: If the requested grid is not a crop of the files' grid, pooled by
            integer factors.
    """
    fine = np.asarray(label_voxel_size, dtype=np.float64)
    factor = np.asarray(voxel_size) / fine
    low = (np.asarray(pc_range[:3]) - np.asarray(label_range[:3])) / fine
    count = (np.asarray(pc_range[3:]) - np.asarray(pc_range[:3])) / np.asarray(voxel_size)
    size = np.round((np.asarray(label_range[3:]) - np.asarray(label_range[:3])) / fine)
    for values, what in (
        (factor, "voxel_size must be a multiple of"),
        (low, "pc_range must start at a voxel of"),
        (count, "pc_range must be a whole number of voxel_size within"),
    ):
        if np.abs(values - np.round(values)).max() > _TOLERANCE_VOXELS or factor.min() < 0.5:
            raise LoaderConfigError(
                f"labels of {tuple(label_voxel_size)} m in {tuple(label_range)} cannot fill a grid "
                f"of {tuple(voxel_size)} m in {tuple(pc_range)}: {what} the labels' grid"
            )
    offset, step, shape = (np.round(v).astype(int).tolist() for v in (low, factor, count))
    end = np.asarray(offset) + np.asarray(step) * np.asarray(shape)
    if min(offset) < 0 or (end > size).any():
        raise LoaderConfigError(
            f"pc_range {tuple(pc_range)} reaches beyond the labels' grid {tuple(label_range)}: "
            "choose a range inside it"
        )
    return LabelWindow(tuple(offset), tuple(step), tuple(shape))


def regrid_sparse(
    index: IntArray, label: IntArray, window: LabelWindow, num_classes: int
) -> npt.NDArray[np.uint8]:
    """Fill the requested grid with a file's occupied voxels.

    A pooled voxel is free if nothing in it is occupied. Otherwise it has the most frequent label of
    its occupied voxels (the lowest one in a tie).

    Args:
        index: [n, 3] voxels (x, y, z) of the file's grid, each once.
        label: [n], 0 ... num_classes - 1.
        window: Position of the requested grid; voxels outside are dropped.
        num_classes: K; free voxels of the result have this label.

    Returns:
        uint8 [X, Y, Z].
    """
    shape, factor = np.array(window.shape), np.array(window.factor)
    shifted = index - np.array(window.offset)
    inside = ((shifted >= 0) & (shifted < shape * factor)).all(axis=1)
    shifted, label = shifted[inside], label[inside]
    grid = np.full(window.shape, num_classes, dtype=np.uint8)
    if not window.is_pooled:
        grid[tuple(shifted.T)] = label
        return grid
    voxel = np.ravel_multi_index(tuple((shifted // factor).T), window.shape)
    pairs, count = np.unique(voxel.astype(np.int64) * num_classes + label, return_counts=True)
    # Sorted by (voxel, votes, -label): the last entry of a voxel has the most votes.
    voxel, label = np.divmod(pairs, num_classes)
    order = np.lexsort((-label, count, voxel))
    grid.reshape(-1)[voxel[order]] = label[order]
    return grid


def mark_unknown(grid: npt.NDArray[np.uint8], unknown: npt.NDArray[np.bool_], free: int) -> None:
    """Write `UNKNOWN_LABEL` to free voxels of a grid that hold a voxel of unknown state.

    A larger voxel with known occupied voxels keeps their label.

    Args:
        grid: uint8 [X, Y, Z], changed in place.
        unknown: bool [X, Y, Z].
        free: Label of free voxels.
    """
    grid[(grid == free) & unknown] = UNKNOWN_LABEL


def pool_any(mask: npt.NDArray[np.bool_], window: LabelWindow) -> npt.NDArray[np.bool_]:
    """Crop and pool a file's mask: true where any voxel inside is true."""
    (x, y, z), (fx, fy, fz) = window.shape, window.factor
    blocks = window.crop(mask).reshape(x, fx, y, fy, z, fz)
    return blocks.any(axis=(1, 3, 5))
