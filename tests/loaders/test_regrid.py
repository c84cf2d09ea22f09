from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from loaders.transforms.regrid import label_window, pool_any, regrid_sparse

FILE_RANGE, FILE_VOXEL = (-1.2, -0.8, -0.4, 1.2, 0.8, 0.4), (0.2, 0.2, 0.2)
FILE_SHAPE, K = (12, 8, 4), 3

windows = st.tuples(st.integers(1, 3), st.integers(1, 2), st.integers(0, 4), st.integers(0, 2)).map(
    # Factors of x and y (z as y), offset along x and y; as many voxels as then fit.
    lambda v: (v[0], v[1], v[2], v[3])
)


def make_window(fx, f, ox, oy):
    voxel = np.array([fx, f, f]) * 0.2
    low = np.array([-1.2 + 0.2 * ox, -0.8 + 0.2 * oy, -0.4])
    count = np.floor((np.array([1.2, 0.8, 0.4]) - low) / voxel + 1e-6)
    return label_window(FILE_RANGE, FILE_VOXEL, [*low, *(low + count * voxel)], voxel)


def brute_force(grid, window):
    """Vote voxel by voxel."""
    out = np.full(window.shape, K, dtype=np.uint8)
    for index in itertools.product(*map(range, window.shape)):
        start = np.array(window.offset) + np.array(index) * window.factor
        block = grid[tuple(slice(a, a + f) for a, f in zip(start, window.factor, strict=True))]
        votes = np.bincount(block[block < K], minlength=K)
        if votes.any():
            out[index] = votes.argmax()  # the lowest of several
    return out


@given(windows, st.integers(0, 2**32))
def test_pooling_is_what_voting_gives(values, seed):
    rng = np.random.default_rng(seed)
    grid = np.where(rng.random(FILE_SHAPE) < 0.4, rng.integers(0, K, FILE_SHAPE), K)
    window = make_window(*values)
    index = np.argwhere(grid < K)
    got = regrid_sparse(index, grid[tuple(index.T)], window, K)
    np.testing.assert_array_equal(got, brute_force(grid, window))


@given(windows, st.integers(0, 2**32))
def test_pooled_mask_is_true_where_any_voxel_is(values, seed):
    mask = np.random.default_rng(seed).random(FILE_SHAPE) < 0.2
    window = make_window(*values)
    expected = brute_force(np.where(mask, 0, K), window) == 0
    np.testing.assert_array_equal(pool_any(mask, window), expected)


def test_whole_grid_and_nothing():
    window = label_window(FILE_RANGE, FILE_VOXEL, FILE_RANGE, FILE_VOXEL)
    assert (window.offset, window.factor, window.shape) == ((0, 0, 0), (1, 1, 1), FILE_SHAPE)
    empty = regrid_sparse(np.zeros((0, 3), int), np.zeros(0, int), window, K)
    assert (empty == K).all()


@pytest.mark.parametrize(
    ("pc_range", "voxel", "message"),
    [
        (FILE_RANGE, (0.3, 0.2, 0.2), "voxel_size must be a multiple"),
        (FILE_RANGE, (0.1, 0.1, 0.1), "voxel_size must be a multiple"),
        ((-1.1, -0.8, -0.4, 1.1, 0.8, 0.4), FILE_VOXEL, "pc_range must start at a voxel"),
        ((-1.2, -0.8, -0.4, 0.8, 0.8, 0.4), (0.6, 0.2, 0.2), "a whole number of voxel_size"),
        ((-1.4, -0.8, -0.4, 1.2, 0.8, 0.4), FILE_VOXEL, "reaches beyond the labels' grid"),
        ((-1.2, -0.8, -0.4, 1.2, 1.0, 0.4), FILE_VOXEL, "reaches beyond the labels' grid"),
    ],
)
def test_grids_that_labels_cannot_fill(pc_range, voxel, message):
    with pytest.raises(ValueError, match=message):
        label_window(FILE_RANGE, FILE_VOXEL, pc_range, voxel)
