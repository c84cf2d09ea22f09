"""Labels stored without deflate: one bit per voxel, and the labels of the few occupied voxels.

Most voxels of a grid are free. A packed file holds one bit per voxel (set where the label is not
the most frequent one), the labels of these voxels, and one bit per voxel of each mask. Nothing is
decompressed when it is read.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from loaders.safe_reading import FileKind, StoredArrays

_GRID = "grid"  # X, Y, Z, and the label of voxels whose bit is 0
_BITS, _LABELS = "other", "labels"
_MAX_VOXELS = 1 << 27


def pack_grids(
    semantics: npt.NDArray[np.uint8], masks: Mapping[str, npt.NDArray[np.bool_]]
) -> dict[str, npt.NDArray[Any]]:
    """Return the arrays of a packed file.

    Args:
        semantics: uint8 [X, Y, Z].
        masks: bool [X, Y, Z] by name.
    """
    common = int(np.bincount(semantics.ravel(), minlength=1).argmax())
    other = semantics != common
    return {
        _GRID: np.array([*semantics.shape, common], dtype=np.int64),
        _BITS: np.packbits(other),
        _LABELS: semantics[other],
        **{name: np.packbits(mask) for name, mask in masks.items()},
    }


def is_packed(file: StoredArrays) -> bool:
    """Return whether a label file is packed."""
    return _GRID in file


def read_packed_grids(
    file: StoredArrays, masks: tuple[str, ...], path: str, kind: FileKind
) -> dict[str, npt.NDArray[Any]]:
    """Read semantics uint8 and masks bool [X, Y, Z] of a packed file.

    Args:
        file: Open file.
        masks: Names of the masks; the file has all or none of them.
        path: Path of the file, for errors.
        kind: Kind of the file, for errors.

    Returns:
        The grids by name: `semantics`, and the masks in the file.

    Raises:
        BadDataError: If the arrays do not match.
    """
    if file.header(_GRID).shape != (4,):
        raise kind.broken(path, "has no grid of three sides")
    *shape, common = file.read(_GRID).tolist()
    number = math.prod(shape)
    if min(shape) < 1 or number > _MAX_VOXELS or not 0 <= common <= 255:
        raise kind.broken(path, f"has an impossible grid {shape}")

    def bits(name: str) -> npt.NDArray[np.bool_]:
        packed = file.read(name) if name in file else np.empty(0, np.uint8)
        if packed.dtype != np.uint8 or packed.shape != (-(-number // 8),):
            raise kind.broken(path, f"has no '{name}' of {number} bits")
        return np.unpackbits(packed, count=number).view(np.bool_)

    other, labels = bits(_BITS), file.read(_LABELS)
    if labels.dtype != np.uint8 or labels.shape != (int(np.count_nonzero(other)),):
        raise kind.broken(path, "does not have one label for each bit")
    semantics = np.full(number, common, dtype=np.uint8)
    semantics[other] = labels
    grids: dict[str, npt.NDArray[Any]] = {"semantics": semantics}
    if any(name in file for name in masks):
        grids |= {name: bits(name) for name in masks}
    return {name: grid.reshape(shape) for name, grid in grids.items()}
