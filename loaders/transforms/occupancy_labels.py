"""Labels as rows of voxels: OpenOccupancy (arXiv 2303.03991), SurroundOcc (arXiv 2303.09551).

Legend: X Y Z voxels along the axes, n rows of a file, K semantic classes.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from mmengine.registry import TRANSFORMS

from loaders.errors import LoaderConfigError, UnknownClassError, WrongShapeError
from loaders.packed_labels import has_packed_rows, pack_rows, read_packed_rows
from loaders.safe_reading import MIB, FileKind, StoredArrays, open_arrays
from loaders.sample import UNKNOWN_LABEL, OccSample
from loaders.transforms.cache import ArrayCache
from loaders.transforms.label_files import LabelFiles, LabelMap, MappedLabels, mapped_labels
from loaders.transforms.regrid import LabelWindow, label_window, mark_unknown, regrid_sparse

NOISE = 0  # label of a file's voxels that are occupied, class unknown
OPENOCC_RANGE = (-51.2, -51.2, -5.0, 51.2, 51.2, 3.0)  # metres, lidar frame
OPENOCC_VOXEL_SIZE = (0.2, 0.2, 0.2)
_RESTORE = "extract the labels again"
_LABEL_FILE = FileKind(
    "label file",
    "extract the labels there, set label_dir in the config, or write the info file again if it "
    "belongs to other data",
    _RESTORE,
    max_bytes=96 * MIB,
)


def read_occupancy_rows(
    path: str,
    grid_shape: tuple[int, int, int],
    num_classes: int,
    ignore_label: int | None = UNKNOWN_LABEL,
    column_order: str = "zyx",
    label_table: npt.NDArray[np.int64] | None = None,
) -> npt.NDArray[np.integer[Any]]:
    """Read the label file of a sample.

    Args:
        path: `.npy` file of integer rows, three voxel indices and a label, or one that
            `pack_occupancy_rows` packed.
        grid_shape: (X, Y, Z) of the grid that the rows index.
        num_classes: K; labels are 0 (noise) to K.
        ignore_label: Label of voxels of unknown state, which is also allowed; None if there is
            none.
        column_order: Axes of the first three columns.
        label_table: Maps labels of the file to new labels, see
            `loaders.transforms.label_files.LabelMap`; `num_classes` and `ignore_label` are then
            not used.

    Returns:
        Integers [n, 4], rows (z, y, x, label), labels as stored. With `label_table`, labels are 1
        to K or `UNKNOWN_LABEL`, and free voxels are removed.

    Raises:
        MissingDataError: If the file does not exist.
        BadDataError: If it is broken or has a wrong shape, voxels outside the grid or other labels.
    """
    rows: npt.NDArray[np.integer[Any]]
    label: npt.NDArray[np.integer[Any]]
    with open_arrays(path, _LABEL_FILE, _LABEL_FILE.max_bytes) as file:
        if has_packed_rows(file):
            rows = read_packed_rows(file, path, _LABEL_FILE)
        else:
            rows = _stored_rows(file, path, column_order)
    rows = rows[:, [*(column_order.index(axis) for axis in "zyx"), 3]]
    if label_table is not None:
        label = mapped_labels(rows[:, 3], label_table, path)
        label[label != UNKNOWN_LABEL] += 1
        rows = np.c_[rows[:, :3].astype(np.int64), label][label != num_classes + 1]
        ignore_label = UNKNOWN_LABEL
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


def _stored_rows(file: StoredArrays, path: str, column_order: str) -> npt.NDArray[np.integer[Any]]:
    """Read integers [n, 4] of a file that is not packed."""
    header = file.header("") if "" in file else None
    if header is None or len(header.shape) != 2 or header.shape[1] != 4:
        raise _LABEL_FILE.broken(path, f"holds no rows ({', '.join(column_order)}, label)")
    if header.dtype.kind not in "ui":
        raise _LABEL_FILE.broken(path, f"is {header.dtype}, not integer")
    return file.read("")


def pack_occupancy_rows(path: str) -> dict[str, npt.NDArray[Any]] | None:
    """Read a file of rows as the arrays of a packed file.

    Args:
        path: The file.

    Returns:
        See `loaders.packed_labels.pack_rows`; None if the rows cannot be packed.

    Raises:
        MissingDataError: If the file does not exist.
        BadDataError: If it is broken.
    """
    with open_arrays(path, _LABEL_FILE, _LABEL_FILE.max_bytes) as file:
        return pack_rows(_stored_rows(file, path, "zyx"))


def occupancy_grids(
    rows: npt.NDArray[np.integer[Any]],
    window: LabelWindow,
    num_classes: int,
    ignore_label: int | None = UNKNOWN_LABEL,
) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.bool_]]:
    """Convert OpenOccupancy rows to dense labels.

    Noise becomes free (label K), as in the training of published models; labels l > 0 become l - 1.

    Args:
        rows: [n, 4] (z, y, x, label), label 0 is noise.
        window: The requested grid within the grid of the rows.
        num_classes: K.
        ignore_label: Label of voxels of unknown state, None if there are none. With 0, noise is
            unknown instead of free.

    Returns:
        Labels uint8 [X, Y, Z], and bool [X, Y, Z]: false in voxels that hold only noise or unknown
        voxels, which are not evaluated.
    """
    index, label = rows[:, 2::-1].astype(np.int64), rows[:, 3].astype(np.int64)
    unknown = label == ignore_label if ignore_label is not None else np.zeros(len(label), bool)
    noise = (label == NOISE) & ~unknown
    semantic = ~noise & ~unknown

    def holds(which: npt.NDArray[np.bool_]) -> npt.NDArray[np.bool_]:
        """Return bool [X, Y, Z], voxels with at least one of the rows inside."""
        return regrid_sparse(index[which], np.zeros_like(label[which]), window, num_classes) == 0

    grid = regrid_sparse(index[semantic], label[semantic] - 1, window, num_classes)
    if unknown.any():
        mark_unknown(grid, holds(unknown), num_classes)
    return grid, (grid < num_classes) | ~(holds(noise) | (grid == UNKNOWN_LABEL))


@TRANSFORMS.register_module()
class LoadOccupancyLabels:
    """Load labels stored as rows of voxels into the grid of the config.

    The grid may be a part of the files' grid, with voxels an integer multiple as large. The
    defaults are those of OpenOccupancy: label 0 is noise, other labels are one more than here.

    Args:
        label_dir: Folder within the data root.
        label_file: Path in that folder, see `loaders.transforms.label_files.LabelFiles`.
        column_order: Axes of the first three columns: 'zyx' or 'xyz'; the last is the label.
        label_range: (x0, y0, z0, x1, y1, z1) of the files' grid, metres of the lidar frame.
        label_voxel_size: (dx, dy, dz) of the files' voxels, metres.
        label_cache_mb: Size of the label cache of each process, MiB (21 MiB per sample of the full
            grid).
        ignore_label: Label of voxels of unknown state in the files; see
            `loaders.transforms.labels.LoadOcc3DLabels`. With 0, noise is also ignored in training.
        label_map: For files with other labels, see `loaders.transforms.label_files.LabelMap`;
            `ignore_label` is then not used.
    """

    def __init__(
        self,
        label_dir: str = "occupancy",
        label_file: str = "scene_{scene_token}/occupancy/{lidar_token}.npy",
        column_order: Literal["zyx", "xyz"] = "zyx",
        label_range: Sequence[float] = OPENOCC_RANGE,
        label_voxel_size: Sequence[float] = OPENOCC_VOXEL_SIZE,
        label_cache_mb: float = 0.0,
        ignore_label: int | None = UNKNOWN_LABEL,
        label_map: MappedLabels | None = None,
    ) -> None:
        if sorted(column_order) != ["x", "y", "z"]:
            raise LoaderConfigError(f"column_order is '{column_order}', use 'zyx' or 'xyz'")
        self._files = LabelFiles(label_dir, label_file)
        self._map = None if label_map is None else LabelMap(label_map)
        self.column_order = column_order
        self.ignore_label = ignore_label if label_map is None else UNKNOWN_LABEL
        self.label_range = tuple(map(float, label_range))
        self.label_voxel_size = tuple(map(float, label_voxel_size))
        whole = label_window(
            self.label_range, self.label_voxel_size, self.label_range, self.label_voxel_size
        )
        self.label_shape = whole.shape
        self._cache = ArrayCache(label_cache_mb)

    def label_path(self, sample: OccSample) -> str:
        """Return the label file of a sample."""
        return self._files.path(sample)

    def __call__(self, sample: OccSample) -> OccSample:
        """Set `voxel_semantics` and `mask_valid`."""
        path, num_classes = self.label_path(sample), len(sample.class_names)
        window = label_window(
            self.label_range, self.label_voxel_size, sample.pc_range, sample.voxel_size
        )

        def read() -> Sequence[npt.NDArray[Any]]:
            table = None if self._map is None else self._map.table(sample.class_names)
            rows = read_occupancy_rows(
                path, self.label_shape, num_classes, self.ignore_label, self.column_order, table
            )
            return occupancy_grids(rows, window, num_classes, self.ignore_label)

        # Copies: changes to a sample must not change the cache.
        sample.voxel_semantics, sample.mask_valid = (
            grid.copy() for grid in self._cache.get((path, window, sample.class_names), read)
        )
        return sample
