"""Visible voxels and faces: those with a free neighbour.

Dimension letters: X, Y, Z voxels of the grid; S voxels of its surface; F faces.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


def surface_voxels(occupied: NDArray[np.bool_]) -> NDArray[np.int64]:
    """Return occupied voxels with a free neighbour, or one outside the grid, among the six.

    Args:
        occupied: bool [X, Y, Z].

    Returns:
        int64 [S, 3] indices in x, y, z, in the grid's order.
    """
    open_faces = np.zeros_like(occupied)
    for axis in range(3):
        for towards in (-1, 1):
            open_faces |= _open_towards(occupied, axis, towards)
    return np.argwhere(open_faces)


def surface_faces(occupied: NDArray[np.bool_]) -> tuple[NDArray[np.int64], NDArray[np.uint8]]:
    """Return the faces between an occupied voxel and a free one or the outside.

    Args:
        occupied: bool [X, Y, Z].

    Returns:
        int64 [F, 3] the occupied voxels, and uint8 [F] the faces: 2 * axis, plus one if the outward
        normal points along the positive axis.
    """
    cells, faces = [], []
    for axis in range(3):
        for sign, towards in enumerate((-1, 1)):
            found = np.argwhere(_open_towards(occupied, axis, towards))
            cells.append(found)
            faces.append(np.full(len(found), 2 * axis + sign, dtype=np.uint8))
    return np.concatenate(cells), np.concatenate(faces)


def _open_towards(occupied: NDArray[np.bool_], axis: int, towards: int) -> NDArray[np.bool_]:
    """Return the occupied voxels whose neighbour along an axis is free: bool [X, Y, Z]."""
    neighbour = np.roll(occupied, -towards, axis=axis)
    edge: list[slice | int] = [slice(None)] * 3
    edge[axis] = -1 if towards > 0 else 0
    neighbour[tuple(edge)] = False  # outside is free
    return occupied & ~neighbour
