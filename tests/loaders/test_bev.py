"""Rotation and scale of the scene seen from above, against numpy and loops."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from loaders.errors import LoaderConfigError
from loaders.sample import UNKNOWN_LABEL
from loaders.transforms.bev import RandomTurnScaleBEV, resample_bev, turn_and_scale
from tests.loaders.test_transforms import make_sample

LOW, VOXEL = np.array([-3.0, -8.0, -1.0]), 0.5


def range_of(shape):
    return [*LOW, *(LOW + np.array(shape) * VOXEL)]  # not centred on the origin


@given(st.integers(-4, 7), st.integers(0, 2**32))
def test_quarter_turns_of_a_square_are_exact(turns, seed):
    grid = np.random.default_rng(seed).integers(0, 18, (12, 12, 3)).astype(np.uint8)
    matrix = turn_and_scale(0.0, turns, 1.0, range_of(grid.shape))
    moved = resample_bev(grid, matrix, range_of(grid.shape), UNKNOWN_LABEL)
    # Counter-clockwise with x to the right and y up: from the first axis to the second.
    np.testing.assert_array_equal(moved, np.rot90(grid, turns, axes=(0, 1)))


@settings(max_examples=15)
@given(st.floats(-180, 180), st.floats(0.7, 1.4), st.integers(0, 3), st.integers(0, 2**32))
def test_every_voxel_takes_what_lay_at_its_centre(angle, scale, turns, seed):
    shape = (9, 7, 2)
    grid = np.random.default_rng(seed).integers(0, 18, shape).astype(np.uint8)
    matrix = turn_and_scale(angle, turns, scale, range_of(shape))
    moved = resample_bev(grid, matrix, range_of(shape), UNKNOWN_LABEL)
    middle = LOW[:2] + np.array(shape[:2]) * VOXEL / 2
    total = math.radians(angle + 90 * turns)
    for x in range(shape[0]):
        for y in range(shape[1]):
            away = (LOW[:2] + (np.array([x, y]) + 0.5) * VOXEL - middle) / scale
            cos, sin = math.cos(total), math.sin(total)
            before = middle + np.array([[cos, sin], [-sin, cos]]) @ away
            place = (before - LOW[:2]) / VOXEL
            if (np.abs(place - np.round(place)) < 1e-6).any():
                continue  # on a border
            i, j = np.floor(place).astype(int)
            inside = 0 <= i < shape[0] and 0 <= j < shape[1]
            expected = grid[i, j] if inside else np.full(shape[2], UNKNOWN_LABEL)
            np.testing.assert_array_equal(moved[x, y], expected)


@given(st.floats(-180, 180), st.floats(0.8, 1.25), st.integers(0, 2**32))
def test_labels_and_points_move_alike(angle, scale, seed):
    """Voxels of a label are within half a voxel of their moved centres."""
    rng = np.random.default_rng(seed)
    shape = (20, 20, 2)
    grid = np.full(shape, 17, np.uint8)
    index = np.array([*rng.integers(6, 14, 2), 1])
    grid[tuple(index)] = 4
    matrix = turn_and_scale(angle, 0, scale, range_of(shape))
    moved = resample_bev(grid, matrix, range_of(shape), UNKNOWN_LABEL)
    centre = np.append(LOW + (index + 0.5) * VOXEL, 1.0)
    for voxel in np.argwhere(moved == 4):
        distance = np.abs(LOW + (voxel + 0.5) * VOXEL - (matrix @ centre)[:3])
        assert distance[:2].max() <= VOXEL / 2 * scale * math.sqrt(2) + 1e-9
        assert distance[2] < 1e-9


class TestTransform:
    def grids(self, rng):
        return dict(
            voxel_semantics=rng.integers(0, 18, (200, 200, 16)).astype(np.uint8),
            mask_camera=rng.random((200, 200, 16)) < 0.5,
        )

    def test_moves_everything_by_one_matrix(self):
        grids = self.grids(np.random.default_rng(0))
        points = np.array([[3.0, 1.0, 0.5, 0.2, 0.0]], np.float32)
        sample = make_sample(**grids, points=points.copy())
        sample.ego2occ = np.diag([-1.0, 1.0, 1.0, 1.0])  # a flip before
        RandomTurnScaleBEV(30.0, True, (0.9, 1.1))(sample)
        matrix = sample.ego2occ @ np.diag([-1.0, 1.0, 1.0, 1.0])
        scale = math.sqrt(np.linalg.det(matrix[:2, :2]))
        assert 0.9 <= scale <= 1.1
        np.testing.assert_allclose(matrix[2], [0, 0, 1, 0])
        for name, fill in (("voxel_semantics", UNKNOWN_LABEL), ("mask_camera", False)):
            expected = resample_bev(grids[name], matrix, sample.pc_range, fill)
            np.testing.assert_array_equal(getattr(sample, name), expected)
        moved = matrix @ [3.0, 1.0, 0.5, 1.0]
        np.testing.assert_allclose(sample.points[0, :3], moved[:3], rtol=1e-5)
        np.testing.assert_array_equal(sample.points[0, 3:], points[0, 3:])

    def test_draws_cover_the_ranges(self):
        step, angles, scales = RandomTurnScaleBEV(20.0, False, (0.8, 1.2)), [], []
        sample = make_sample()
        for _ in range(200):
            sample.ego2occ = np.eye(4)
            matrix = step(sample).ego2occ
            angles.append(math.degrees(math.atan2(matrix[1, 0], matrix[0, 0])))
            scales.append(math.hypot(matrix[0, 0], matrix[1, 0]))
        assert -20 <= min(angles) < -15 and 15 < max(angles) <= 20
        assert 0.8 <= min(scales) < 0.85 and 1.15 < max(scales) <= 1.2

    def test_nothing_happens_when_off_or_in_test_mode(self):
        sample, untouched = make_sample(), make_sample()
        assert RandomTurnScaleBEV()(sample).rng.uniform() == untouched.rng.uniform()
        np.testing.assert_array_equal(sample.ego2occ, np.eye(4))
        sample = make_sample(training=False)
        np.testing.assert_array_equal(RandomTurnScaleBEV(45.0)(sample).ego2occ, np.eye(4))

    @pytest.mark.parametrize(
        ("arguments", "words"),
        [
            (dict(bev_rotation_deg=-1.0), "bev_rotation_deg is -1"),
            (dict(bev_scale_range=(1.1, 0.9)), "bev_scale_range is"),
            (dict(bev_scale_range=(0.0, 1.0)), "bev_scale_range is"),
        ],
    )
    def test_ranges_that_cannot_be_are_refused(self, arguments, words):
        with pytest.raises(LoaderConfigError, match=words):
            RandomTurnScaleBEV(**arguments)
