"""OpenOccupancy labels (arXiv 2303.03991). Legend: X Y Z voxels along the axes, n rows of a file,
K semantic classes.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from mmengine.registry import TRANSFORMS

from loaders.errors import UnknownClassError, WrongShapeError
from loaders.safe_reading import MIB, FileKind, open_arrays
from loaders.sample import UNKNOWN_LABEL, OccSample
from loaders.transforms.cache import ArrayCache
from loaders.transforms.regrid import LabelWindow, label_window, mark_unknown, regrid_sparse

NOISE = 0  # label of a file's voxels that are occupied by nobody knows what
OPENOCC_RANGE = (-51.2, -51.2, -5.0, 51.2, 51.2, 3.0)  # metres, lidar frame
OPENOCC_VOXEL_SIZE = (0.2, 0.2, 0.2)
_RESTORE = "extract the OpenOccupancy labels again"
_LABEL_FILE = FileKind(
    "label file",
    "extract the OpenOccupancy labels to occupancy/ of the data root, or write the info file anew "
    "if it belongs to other data",
    _RESTORE,
    max_bytes=96 * MIB,
)


def read_occupancy_rows(
    path: str,
    grid_shape: tuple[int, int, int],
    num_classes: int,
    ignore_label: int | None = UNKNOWN_LABEL,
) -> npt.NDArray[np.integer[Any]]:
    """Reads an OpenOccupancy file.

    Args:
        path: ``.npy`` file of integer rows (z, y, x, label).
        grid_shape: (X, Y, Z) of the grid that the rows index.
        num_classes: K; labels are 0 (noise) to K.
        ignore_label: Label of voxels of unknown state, which is allowed too; None if there is none.

    Returns:
        Integers [n, 4], as stored.

    Raises:
        MissingDataError: If the file does not exist.
        BadDataError: If it is broken or has other shapes, voxels outside the grid or other labels.
    """
    with open_arrays(path, _LABEL_FILE, _LABEL_FILE.max_bytes) as file:
        header = file.header("") if "" in file else None
        if header is None or len(header.shape) != 2 or header.shape[1] != 4:
            raise _LABEL_FILE.broken(path, "holds no rows (z, y, x, label)")
        if header.dtype.kind not in "ui":
            raise _LABEL_FILE.broken(path, f"is {header.dtype}, not integer")
        rows = file.read("")
    if len(rows):
        low, high = rows[:, :3].min(axis=0).tolist(), rows[:, :3].max(axis=0).tolist()
        if min(low) < 0 or any(a >= b for a, b in zip(high, grid_shape[::-1], strict=True)):
            raise WrongShapeError(
                f"label file {path} has voxels (z, y, x) from {low} to {high}, outside its "
                f"grid {list(grid_shape[::-1])}: {_RESTORE}, or correct label_range"
            )
        label = rows[:, 3]
        label = label if ignore_label is None else label[label != ignore_label]
        first, last = (int(label.min()), int(label.max())) if len(label) else (0, 0)
        if first < 0 or last > num_classes:
            raise UnknownClassError(
                f"label file {path} has class {first if first < 0 else last}, but class_names "
                f"of the config allow 0 to {num_classes}: {_RESTORE}, correct class_names, or set "
                "ignore_label if it marks voxels of unknown state"
            )
    return rows


def occupancy_grids(
    rows: npt.NDArray[np.integer[Any]],
    window: LabelWindow,
    num_classes: int,
    ignore_label: int | None = UNKNOWN_LABEL,
) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.bool_]]:
    """Makes dense labels of OpenOccupancy rows.

    Noise becomes free (label K), as published models are trained; other labels l become l - 1.

    Args:
        rows: [n, 4] (z, y, x, label), label 0 is noise.
        window: The wanted grid within that of the rows.
        num_classes: K.
        ignore_label: Label of voxels of unknown state, None if there are none. With 0, noise is
            unknown instead of free.

    Returns:
        Labels uint8 [X, Y, Z], and bool [X, Y, Z]: false in voxels that hold noise or unknown ones
        and nothing else, which do not count in the evaluation.
    """
    index, label = rows[:, 2::-1].astype(np.int64), rows[:, 3].astype(np.int64)
    unknown = label == ignore_label if ignore_label is not None else np.zeros(len(label), bool)
    noise = (label == NOISE) & ~unknown
    semantic = ~noise & ~unknown

    def holds(which: npt.NDArray[np.bool_]) -> npt.NDArray[np.bool_]:
        """Bool [X, Y, Z], voxels with one of the rows inside."""
        return regrid_sparse(index[which], np.zeros_like(label[which]), window, num_classes) == 0

    grid = regrid_sparse(index[semantic], label[semantic] - 1, window, num_classes)
    if unknown.any():
        mark_unknown(grid, holds(unknown), num_classes)
    return grid, (grid < num_classes) | ~(holds(noise) | (grid == UNKNOWN_LABEL))


@TRANSFORMS.register_module()
class LoadOccupancyLabels:
    """Loads OpenOccupancy labels into the grid of the config, which may be a part of the files'
    grid, with voxels a whole number of times as large.

    Args:
        label_dir: Folder within the data root; files are
            ``scene_<scene_token>/occupancy/<lidar_token>.npy``.
        label_range: (x0, y0, z0, x1, y1, z1) of the files' grid, metres of the lidar frame.
        label_voxel_size: (dx, dy, dz) of the files' voxels, metres.
        label_cache_mb: Size of the label cache of each process, MiB (21 MiB per sample of the full
            grid).
        ignore_label: Label of voxels of unknown state in the files; see
            :class:`loaders.transforms.labels.LoadOcc3DLabels`.
    """

    def __init__(
        self,
        label_dir: str = "occupancy",
        label_range: Sequence[float] = OPENOCC_RANGE,
        label_voxel_size: Sequence[float] = OPENOCC_VOXEL_SIZE,
        label_cache_mb: float = 0.0,
        ignore_label: int | None = UNKNOWN_LABEL,
    ) -> None:
        self.label_dir = label_dir
        self.ignore_label = ignore_label
        self.label_range = tuple(map(float, label_range))
        self.label_voxel_size = tuple(map(float, label_voxel_size))
        whole = label_window(
            self.label_range, self.label_voxel_size, self.label_range, self.label_voxel_size
        )
        self.label_shape = whole.shape
        self._cache = ArrayCache(label_cache_mb)

    def label_path(self, sample: OccSample) -> str:
        """Returns the label file of a sample."""
        scene, name = f"scene_{sample.scene_token}", f"{sample.lidar_token}.npy"
        return os.path.join(sample.data_root, self.label_dir, scene, "occupancy", name)

    def __call__(self, sample: OccSample) -> OccSample:
        """Sets ``voxel_semantics`` and ``mask_valid``."""
        path, num_classes = self.label_path(sample), len(sample.class_names)
        window = label_window(
            self.label_range, self.label_voxel_size, sample.pc_range, sample.voxel_size
        )

        def read() -> Sequence[npt.NDArray[Any]]:
            rows = read_occupancy_rows(path, self.label_shape, num_classes, self.ignore_label)
            return occupancy_grids(rows, window, num_classes, self.ignore_label)

        # Copies: whoever changes a sample must not change the cache.
        sample.voxel_semantics, sample.mask_valid = (
            grid.copy() for grid in self._cache.get((path, window), read)
        )
        return sample
