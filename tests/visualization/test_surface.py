from __future__ import annotations

from itertools import product

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from scripts.visualization.surface import surface_faces, surface_voxels


def free_neighbours(grid: np.ndarray) -> set[tuple[tuple[int, ...], int]]:
    """Return (voxel, face) of all open faces, found one by one."""
    found = set()
    for voxel in product(*map(range, grid.shape)):
        for axis, positive in product(range(3), (0, 1)):
            other = list(voxel)
            other[axis] += 1 if positive else -1
            inside = all(0 <= i < n for i, n in zip(other, grid.shape, strict=True))
            if grid[voxel] and not (inside and grid[tuple(other)]):
                found.add((voxel, 2 * axis + positive))
    return found


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 2**32 - 1), st.tuples(*[st.integers(1, 5)] * 3), st.floats(0, 1))
def test_faces_and_voxels_of_any_grid(seed, shape, share):
    grid = np.random.default_rng(seed).random(shape) < share
    expected = free_neighbours(grid)
    cells, faces = surface_faces(grid)
    found = [(tuple(cell), int(face)) for cell, face in zip(cells.tolist(), faces, strict=True)]
    assert len(found) == len(set(found)) and set(found) == expected
    voxels = {tuple(voxel) for voxel in surface_voxels(grid).tolist()}
    assert voxels == {voxel for voxel, _ in expected}
