"""Occ3D labels and flips of the bird's-eye view. Legend: X Y Z voxels along the axes."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from mmengine.registry import TRANSFORMS

from loaders.errors import BadDataError, LoaderConfigError, UnknownClassError, WrongShapeError
from loaders.packed_labels import is_packed, pack_grids, read_packed_grids
from loaders.safe_reading import MIB, FileKind, StoredArrays, open_arrays
from loaders.sample import UNKNOWN_LABEL, OccSample
from loaders.transforms.cache import ArrayCache
from loaders.transforms.geometry import flip_bev
from loaders.transforms.label_files import LabelFiles, LabelMap, MappedLabels, mapped_labels
from loaders.transforms.regrid import (
    LabelWindow,
    label_window,
    mark_unknown,
    pool_any,
    regrid_sparse,
)

_MASKS = ("mask_camera", "mask_lidar")
# Grids that BEV flips must reverse together.
_GRIDS = ("voxel_semantics", "mask_camera", "mask_lidar", "mask_valid")

_RESTORE = "extract the labels again"
_LABEL_FILE = FileKind(
    "label file",
    "extract the labels there, set label_dir in the config, or write the info file again if it "
    "belongs to other data",
    _RESTORE,
    max_bytes=512 * MIB,
)
# Size that labels of any grid may have; the grid of the config may need more.
_MAX_LABEL_BYTES = 128 * MIB

Labels = tuple[
    npt.NDArray[np.uint8], "npt.NDArray[np.bool_] | None", "npt.NDArray[np.bool_] | None"
]


def loads_labels(transform_type: str) -> bool:
    """Return whether a transform loads labels: the name of its class contains Labels."""
    return "Labels" in transform_type


def read_occ3d_labels(
    path: str,
    grid_shape: tuple[int, int, int],
    num_classes: int,
    ignore_label: int | None = UNKNOWN_LABEL,
    label_table: npt.NDArray[np.int64] | None = None,
) -> Labels:
    """Read an Occ3D `labels.npz` file.

    Args:
        path: File with `semantics` and, optionally, `mask_camera` and `mask_lidar`.
        grid_shape: (X, Y, Z) that the arrays must have, or integer multiples of it (finer labels).
        num_classes: Number of classes, free included; labels must be below it.
        ignore_label: Label of the file's voxels of unknown state; None if there are none.
        label_table: Maps labels of the file to new labels, see
            `loaders.transforms.label_files.LabelMap`; `ignore_label` is then not used.

    Returns:
        Semantics uint8 (`UNKNOWN_LABEL` where the state is unknown), camera mask bool and LiDAR
        mask bool, of the same shape; None for masks that the file does not have.

    Raises:
        MissingDataError: If the file does not exist.
        BadDataError: If it is broken, lacks the semantics or one of the masks, or has another
            shape or unknown labels.
    """
    limit = max(_MAX_LABEL_BYTES, 8 * (1 + len(_MASKS)) * math.prod(grid_shape))
    with open_arrays(path, _LABEL_FILE, limit) as file:
        if is_packed(file):
            grids = read_packed_grids(file, _MASKS, path, _LABEL_FILE)
            keys = tuple(grids)
            _check_shapes({key: grid.shape for key, grid in grids.items()}, path, grid_shape)
            semantics, *masks = grids.values()
        else:
            keys = _keys_of(file, path)
            _check_shapes({key: file.header(key).shape for key in keys}, path, grid_shape)
            semantics, *masks = (file.read(key) for key in keys)
    if label_table is None:
        semantics = known_labels(semantics, ignore_label, num_classes, path, _RESTORE)
    elif semantics.dtype.kind not in "ui":
        raise _LABEL_FILE.broken(path, f"is {semantics.dtype}, not integer")
    else:
        semantics = mapped_labels(semantics, label_table, path).astype(np.uint8)
    camera, lidar = (mask.astype(bool, copy=False) for mask in masks) if masks else (None, None)
    return semantics, camera, lidar


def pack_occ3d_labels(path: str) -> dict[str, npt.NDArray[Any]] | None:
    """Read a `labels.npz` file as the arrays of a packed file; labels and masks are unchanged.

    Args:
        path: Path of the file.

    Returns:
        See `loaders.packed_labels.pack_grids`; None if the labels need more than 8 bits.

    Raises:
        MissingDataError: If the file does not exist.
        BadDataError: If it is broken.
    """
    with open_arrays(path, _LABEL_FILE, _MAX_LABEL_BYTES) as file:
        keys = _keys_of(file, path)
        shapes = {file.header(key).shape for key in keys}
        if len(shapes) > 1 or len(shapes.pop()) != 3:
            raise WrongShapeError(
                f"label file {path} does not hold 3D grids of one shape: {_RESTORE}"
            )
        semantics, *masks = (file.read(key) for key in keys)
    if semantics.dtype.kind not in "ui" or semantics.min(initial=0) < 0:
        return None
    if semantics.max(initial=0) > np.iinfo(np.uint8).max:
        return None
    named = dict(zip(keys[1:], (mask.astype(bool, copy=False) for mask in masks), strict=True))
    return pack_grids(semantics.astype(np.uint8, copy=False), named)


def _keys_of(file: StoredArrays, path: str) -> tuple[str, ...]:
    """Return the names of the semantics and of the masks, if any."""
    with_masks = any(name in file for name in _MASKS)
    keys = ("semantics", *(_MASKS if with_masks else ()))
    for key in keys:
        if key not in file:
            raise _LABEL_FILE.broken(path, f"has no '{key}'")
    return keys


def _check_shapes(
    shapes: Mapping[str, tuple[int, ...]], path: str, grid_shape: tuple[int, int, int]
) -> None:
    """Raise BadDataError unless all arrays have the same, matching shape."""
    first = shapes["semantics"]
    for key, shape in shapes.items():
        # Masks must have the shape of the semantics: the requested grid or a finer one.
        if shape != first or _factors(shape, grid_shape) is None:
            raise WrongShapeError(
                f"label file {path}: '{key}' has shape {shape}, but pc_range and voxel_size "
                f"of the config make {grid_shape}: {_RESTORE}, or change the config"
            )


def known_labels(
    semantics: npt.NDArray[Any],
    ignore_label: int | None,
    num_classes: int,
    path: str,
    restore: str,
) -> npt.NDArray[np.uint8]:
    """Check the labels of a dense grid, and replace `ignore_label` by `UNKNOWN_LABEL`.

    Args:
        semantics: Labels of any shape, as stored; may be changed.
        ignore_label: Label of the file's voxels of unknown state; None if there are none.
        num_classes: Number of classes, free included; all other labels must be below it.
        path: Path of the file, for the error.
        restore: Remedy, for the error.

    Returns:
        uint8 of the same shape.

    Raises:
        BadDataError: If there is another label, or the labels are not integers.
    """
    if semantics.dtype.kind not in "ui":
        raise BadDataError(f"label file {path} is {semantics.dtype}, not integer: {restore}")
    known: npt.NDArray[np.bool_] | None = None
    if ignore_label is not None:
        known = semantics != ignore_label
        known = None if known.all() else known
    judged: Any = True if known is None else known
    low = int(semantics.min(initial=0, where=judged))
    high = int(semantics.max(initial=0, where=judged))
    if low < 0 or high >= num_classes:
        raise UnknownClassError(
            f"label file {path} has class {low if low < 0 else high}, but class_names of the "
            f"config allow 0 to {num_classes - 1}: {restore}, correct class_names, or set "
            "ignore_label if it marks voxels of unknown state"
        )
    labels = semantics.astype(np.uint8, copy=False)
    if known is not None:
        labels[~known] = UNKNOWN_LABEL
    return labels


def _factors(
    shape: tuple[int, ...], grid_shape: tuple[int, int, int]
) -> tuple[int, int, int] | None:
    """Return the number of file voxels per grid voxel on each axis, None if not an integer."""
    if len(shape) != 3 or any(a < b or a % b for a, b in zip(shape, grid_shape, strict=True)):
        return None
    x, y, z = (a // b for a, b in zip(shape, grid_shape, strict=True))
    return x, y, z


@TRANSFORMS.register_module()
class LoadOcc3DLabels:
    """Load semantics and, if the files have them, visibility masks of a sample.

    The config's voxels may be larger than the files' by an integer factor. Such a voxel has the
    most frequent label of its occupied voxels. Without occupied voxels it is unknown if any voxel
    inside is unknown. A mask is true if it is true for any voxel inside.

    Args:
        label_dir: Folder within the data root.
        label_file: Path in that folder, see `loaders.transforms.label_files.LabelFiles`.
        label_cache_mb: Size of the label cache of each process, MiB (1.8 MiB per Occ3D sample).
        label_range: (x0, y0, z0, x1, y1, z1) of the files' grid, metres; the grid of the config may
            be a part of it. None means the range of the config.
        ignore_label: Label of voxels of unknown state in the files. They get `UNKNOWN_LABEL`,
            which losses and metrics ignore. None rejects files with labels that are not a class.
        label_map: For files with other classes or another order, see
            `loaders.transforms.label_files.LabelMap`; `ignore_label` is then not used.
    """

    def __init__(
        self,
        label_dir: str = "gts",
        label_file: str = "{scene_name}/{sample_token}/labels.npz",
        label_cache_mb: float = 0.0,
        label_range: Sequence[float] | None = None,
        ignore_label: int | None = UNKNOWN_LABEL,
        label_map: MappedLabels | None = None,
    ) -> None:
        self._files = LabelFiles(label_dir, label_file)
        self._map = None if label_map is None else LabelMap(label_map)
        self.ignore_label = ignore_label
        self.label_range = None if label_range is None else tuple(map(float, label_range))
        self._cache = ArrayCache(label_cache_mb)

    def label_path(self, sample: OccSample) -> str:
        """Return the label file of a sample."""
        return self._files.path(sample)

    def __call__(self, sample: OccSample) -> OccSample:
        """Set `voxel_semantics` and, if the file has masks, `mask_camera`, `mask_lidar`."""
        path, num_classes = self.label_path(sample), len(sample.class_names)
        grid = (sample.pc_range, sample.voxel_size)
        label_range = self.label_range or sample.pc_range

        def read() -> Sequence[npt.NDArray[Any]]:
            whole = label_window(label_range, grid[1], label_range, grid[1]).shape
            table = None if self._map is None else self._map.table(sample.class_names)
            arrays = read_occ3d_labels(path, whole, num_classes + 1, self.ignore_label, table)
            fine = np.array(grid[1]) / (_factors(arrays[0].shape, whole) or (1, 1, 1))
            window = label_window(label_range, fine.tolist(), *grid)
            is_whole = window.shape == arrays[0].shape
            if not is_whole:
                arrays = _regrid(*arrays, window, num_classes)
            return [array for array in arrays if array is not None]

        grids = self._cache.get((path, *grid, sample.class_names), read)
        if self._cache.limit:  # changes to a sample must not change the cache
            grids = [grid.copy() for grid in grids]
        sample.voxel_semantics, *masks = grids
        if masks:
            sample.mask_camera, sample.mask_lidar = masks
        return sample


def _regrid(
    semantics: npt.NDArray[np.uint8],
    mask_camera: npt.NDArray[np.bool_] | None,
    mask_lidar: npt.NDArray[np.bool_] | None,
    window: LabelWindow,
    num_classes: int,
) -> Labels:
    """Crop and pool the arrays of a file (num_classes: semantic classes, free excluded)."""
    unknown = semantics == UNKNOWN_LABEL
    index = np.argwhere((semantics != num_classes) & ~unknown)
    label = semantics[tuple(index.T)].astype(np.int64)
    grid = regrid_sparse(index, label, window, num_classes)
    mark_unknown(grid, pool_any(unknown, window), num_classes)
    camera, lidar = (
        None if mask is None else pool_any(mask, window) for mask in (mask_camera, mask_lidar)
    )
    return grid, camera, lidar


@TRANSFORMS.register_module()
class RandomFlipBEV:
    """Reverse the x and/or y axis of the labels, of `ego2occ` and of LiDAR points.

    Does nothing in test mode. Put it after the transforms that load labels and points. The frames
    of a sequence have the same flips.

    Args:
        bev_flip_prob: Probability of reversing an axis, one for both or (x, y). With 0 for both,
            nothing is drawn from the sample's generator.
    """

    def __init__(self, bev_flip_prob: float | Sequence[float] = 0.5) -> None:
        if isinstance(bev_flip_prob, (int, float)):
            bev_flip_prob = (bev_flip_prob, bev_flip_prob)
        try:
            x, y = map(float, bev_flip_prob)
        except (TypeError, ValueError):
            x = y = math.nan
        if not (0 <= x <= 1 and 0 <= y <= 1):
            raise LoaderConfigError(
                f"RandomFlipBEV: bev_flip_prob is {bev_flip_prob}, use a number from 0 to 1, or "
                "two of them for x and y"
            )
        self.bev_flip_prob = (x, y)

    def __call__(self, sample: OccSample) -> OccSample:
        """Flip labels, masks and points, if loaded, and set `ego2occ`."""
        rng = sample.bev_rng
        if rng is None or not any(self.bev_flip_prob):
            return sample
        draw_x, draw_y = rng.uniform(size=2)
        loaded = [name for name in _GRIDS if getattr(sample, name) is not None]
        grids, flip = flip_bev(
            [getattr(sample, name) for name in loaded],
            bool(draw_x < self.bev_flip_prob[0]),
            bool(draw_y < self.bev_flip_prob[1]),
            sample.pc_range,
        )
        for name, grid in zip(loaded, grids, strict=True):
            setattr(sample, name, grid)
        sample.ego2occ = flip @ sample.ego2occ
        if sample.points is not None:
            for axis in np.flatnonzero(np.diagonal(flip) < 0):
                column = sample.points[:, axis]
                np.negative(column, out=column)
                column += np.float32(flip[axis, 3])
        return sample
