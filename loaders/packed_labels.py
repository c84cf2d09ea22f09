"""Labels without compression by deflate.

Most voxels of a grid are free. A packed grid has one bit per voxel that is set if it is not free,
the labels of these voxels, and one bit per voxel of each mask. Packed rows of voxels have one byte
per label; positions take either one bit per voxel of the grid or four bytes per row, whichever is
smaller.
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
_SIDES = "sides"  # of the smallest grid that contains all rows, by column
_PLACES = "places"  # indices of rows in that grid, with the last column as the fastest
_PLACE_BYTES = 4
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
        return _read_bits(file, name, number, path, kind)

    other, labels = bits(_BITS), file.read(_LABELS)
    if labels.dtype != np.uint8 or labels.shape != (int(np.count_nonzero(other)),):
        raise kind.broken(path, "does not have one label for each bit")
    semantics = np.full(number, common, dtype=np.uint8)
    semantics[other] = labels
    grids: dict[str, npt.NDArray[Any]] = {"semantics": semantics}
    if any(name in file for name in masks):
        grids |= {name: bits(name) for name in masks}
    return {name: grid.reshape(shape) for name, grid in grids.items()}


def _read_bits(
    file: StoredArrays, name: str, number: int, path: str, kind: FileKind
) -> npt.NDArray[np.bool_]:
    """Read an array of bits as bool [number]."""
    packed = file.read(name) if name in file else np.empty(0, np.uint8)
    if packed.dtype != np.uint8 or packed.shape != (-(-number // 8),):
        raise kind.broken(path, f"has no '{name}' of {number} bits")
    return np.unpackbits(packed, count=number).view(np.bool_)


def pack_rows(rows: npt.NDArray[np.integer[Any]]) -> dict[str, npt.NDArray[Any]] | None:
    """Return the arrays of a packed file of rows.

    Args:
        rows: Integers [n, 4], three indices of a voxel and its label.

    Returns:
        The arrays; None if an index or a label is negative, a label needs more than 8 bits, or the
        grid of the indices is too large.
    """
    if not len(rows):
        sides = [0, 0, 0]
    else:
        if rows.min() < 0 or rows[:, 3].max() > np.iinfo(np.uint8).max:
            return None
        sides = [int(side) + 1 for side in rows[:, :3].max(axis=0)]
    number = math.prod(sides)
    if number > _MAX_VOXELS:
        return None
    places = np.ravel_multi_index(tuple(rows[:, :3].astype(np.int64).T), sides) if len(rows) else []
    flat = np.asarray(places, dtype=np.uint32)
    packed: dict[str, npt.NDArray[Any]] = {
        _SIDES: np.array(sides, dtype=np.int64),
        _LABELS: rows[:, 3].astype(np.uint8),
    }
    is_rising = bool((flat[1:] > flat[:-1]).all())
    if is_rising and -(-number // 8) < _PLACE_BYTES * len(flat):
        occupied = np.zeros(number, dtype=np.bool_)
        occupied[flat] = True
        return {**packed, _BITS: np.packbits(occupied)}
    return {**packed, _PLACES: flat}


def has_packed_rows(file: StoredArrays) -> bool:
    """Return whether a file of labels holds packed rows."""
    return _SIDES in file


def read_packed_rows(file: StoredArrays, path: str, kind: FileKind) -> npt.NDArray[np.int64]:
    """Read packed rows as integers [n, 4], in the order and with the values of the source.

    Args:
        file: Open file.
        path: Path of the file, for errors.
        kind: Kind of the file, for errors.

    Raises:
        BadDataError: If the arrays do not fit together.
    """
    if file.header(_SIDES).shape != (3,):
        raise kind.broken(path, "has no grid of three sides")
    sides = file.read(_SIDES).tolist()
    number = math.prod(sides)
    if min(sides) < 0 or number > _MAX_VOXELS:
        raise kind.broken(path, f"has an impossible grid {sides}")
    labels = file.read(_LABELS) if _LABELS in file else np.empty(0)
    if _PLACES in file:
        places = file.read(_PLACES)
    else:
        places = np.flatnonzero(_read_bits(file, _BITS, number, path, kind))
    if labels.dtype != np.uint8 or labels.ndim != 1 or places.shape != labels.shape:
        raise kind.broken(path, "does not have one label for each voxel")
    is_inside = places.dtype.kind in "ui" and places.min(initial=0) >= 0
    if not is_inside or (len(places) and places.max() >= number):
        raise kind.broken(path, "has voxels outside of its grid")
    rows = np.empty((len(labels), 4), dtype=np.int64)
    rest = places
    for column in (2, 1):
        rest, rows[:, column] = np.divmod(rest, sides[column] or 1)
    rows[:, 0], rows[:, 3] = rest, labels
    return rows
