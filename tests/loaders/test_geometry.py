from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.spatial.transform import Rotation

from loaders.transforms.geometry import (
    ImageAugParams,
    apply_image_aug,
    draw_image_aug,
    ego2img_from_poses,
    flip_bev,
    image_aug_matrix,
    lidar_ray_origins,
    quaternion_to_matrix,
)
from loaders.transforms.geometry import test_image_aug as evaluation_image_aug

GOLDEN = Path(__file__).resolve().parents[1] / "golden"
ANGLES = st.tuples(*[st.floats(-3.1, 3.1)] * 3)


@pytest.fixture(scope="module")
def golden():
    with np.load(GOLDEN / "geometry.npz") as file:
        return dict(file)


def params_of(golden, name):
    return ImageAugParams.from_dict(json.loads(bytes(golden[f"ida/{name}.params"])))


@pytest.mark.parametrize("i", range(4))
def test_golden_ego2img(golden, i):
    names = ("ego2global_rotation", "ego2global_translation", "sensor2global_rotation",
             "sensor2global_translation", "cam_intrinsic")  # fmt: skip
    got = ego2img_from_poses(*(golden[f"ego2img/{i}.{name}"] for name in names))
    # Processors add up a matrix product in orders of their own: what cancels out differs.
    expected = golden[f"ego2img/{i}.ego2img"]
    np.testing.assert_allclose(got.astype(np.float32), expected, rtol=1e-7, atol=1e-11)


@pytest.mark.parametrize("name", ["test", "0", "1", "2", "3"])
def test_golden_image_matrix(golden, name):
    got = image_aug_matrix(params_of(golden, name))
    np.testing.assert_array_equal(got, golden[f"ida/{name}.matrix"])


@pytest.mark.parametrize("name", ["0", "1", "2", "3"])
def test_golden_image(golden, name):
    got = apply_image_aug(golden["ida/image"], params_of(golden, name))
    np.testing.assert_array_equal(got, golden[f"ida/{name}.image"])


def test_golden_evaluation_parameters(golden):
    assert evaluation_image_aug((900, 1600), (256, 704)) == params_of(golden, "test")


@pytest.mark.parametrize("i", range(4))
def test_golden_bev_flips(golden, i):
    flip_x, flip_y = map(bool, golden[f"bda/{i}.flip"])
    (semantics,), ego2occ = flip_bev([golden["bda/semantics"]], flip_x, flip_y)
    np.testing.assert_array_equal(semantics, golden[f"bda/{i}.semantics"])
    np.testing.assert_array_equal(ego2occ, golden[f"bda/{i}.ego2occ"])


@given(st.integers(0, 2**32), st.sampled_from([(900, 1600), (225, 400)]))
def test_drawn_parameters_are_within_the_rules(seed, raw_hw):
    final_hw = (raw_hw[0] * 256 // 900, raw_hw[1] * 704 // 1600)
    params = draw_image_aug(np.random.default_rng(seed), raw_hw, final_hw, (0.38, 0.55))
    new_w, new_h = params.resize_dims
    left, _top, _right, bottom = params.crop
    assert 0.38 <= params.resize <= 0.55
    assert (new_w, new_h) == (int(raw_hw[1] * params.resize), int(raw_hw[0] * params.resize))
    assert params.size_hw == final_hw
    assert bottom == new_h  # bottom-aligned
    assert 0 <= left <= max(0, new_w - final_hw[1])
    assert params.rotate_deg == 0


def test_draws_cover_flips_and_all_crops():
    rng = np.random.default_rng(0)
    drawn = [draw_image_aug(rng, (40, 40), (20, 38), (1.0, 1.0)) for _ in range(200)]
    assert {p.crop[0] for p in drawn} == {0, 1, 2}
    assert 60 < sum(p.flip for p in drawn) < 140


@pytest.mark.parametrize("size", [116, 29, 57, 113])
def test_a_ratio_does_not_lose_a_pixel_to_rounding(size):
    # 400 * 0.29 is 115.99999999999999 in binary.
    params = evaluation_image_aug((400, 400), (size, size))
    assert params.resize_dims == (size, size)


def pose(angles, translation):
    return Rotation.from_euler("ZYX", angles).as_matrix(), np.array(translation)


@given(ANGLES, ANGLES, st.integers(0, 2**32))
def test_projection_is_that_of_the_chain_of_frames(ego_angles, cam_angles, seed):
    rng = np.random.default_rng(seed)
    r_ego, t_ego = pose(ego_angles, rng.uniform(-1000, 1000, 3))
    r_cam, t_cam = pose(cam_angles, t_ego + rng.uniform(-5, 5, 3))
    intrinsic = np.array([[1266.0, 0, 816], [0, 1200.0, 491], [0, 0, 1]])
    points = rng.uniform(-40, 40, (20, 3))
    in_camera = (points @ r_ego.T + t_ego - t_cam) @ r_cam
    expected = in_camera @ intrinsic.T
    matrix = ego2img_from_poses(r_ego, t_ego, r_cam, t_cam, intrinsic)
    got = np.c_[points, np.ones(20)] @ matrix.T
    np.testing.assert_allclose(got[:, :3], expected, atol=1e-6)
    np.testing.assert_allclose(got[:, 3], 1)


def test_projection_is_batched():
    rng = np.random.default_rng(0)
    r_ego, t_ego = pose((0.1, 0.2, 0.3), (1, 2, 3))
    rotations = Rotation.random(6, random_state=0).as_matrix().reshape(2, 3, 3, 3)
    translations = rng.normal(size=(2, 3, 3))
    intrinsics = rng.uniform(1, 9, (2, 3, 3, 3))
    batch = ego2img_from_poses(r_ego, t_ego, rotations, translations, intrinsics)
    assert batch.shape == (2, 3, 4, 4)
    one = ego2img_from_poses(r_ego, t_ego, rotations[1, 2], translations[1, 2], intrinsics[1, 2])
    np.testing.assert_allclose(batch[1, 2], one, atol=1e-12)


@given(
    st.floats(0.3, 1.5),
    st.integers(-20, 60),
    st.integers(-20, 60),
    st.booleans(),
    st.floats(-30, 30),
)
def test_image_matrix_follows_a_pixel_step_by_step(resize, left, top, flip, rotate):
    crop = (left, top, left + 100, top + 60)
    params = ImageAugParams(resize, (int(200 * resize), int(150 * resize)), crop, flip, rotate)
    pixel = np.array([120.0, 70.0])
    moved = pixel * resize - [left, top]
    if flip:
        moved[0] = 100 - moved[0]
    angle = np.radians(rotate)
    away = moved - [50, 30]
    # Image rows grow downwards, so this turns counter-clockwise to the eye.
    turned = [
        np.cos(angle) * away[0] + np.sin(angle) * away[1] + 50,
        -np.sin(angle) * away[0] + np.cos(angle) * away[1] + 30,
    ]
    depth = 7.0
    got = image_aug_matrix(params) @ np.array([*(pixel * depth), depth, 1])
    np.testing.assert_allclose(got[:2] / got[2], turned, atol=1e-3)
    np.testing.assert_allclose(got[2:], [depth, 1])


@given(st.booleans(), st.booleans(), st.integers(0, 2**32))
def test_bev_flip_moves_labels_and_points_alike(flip_x, flip_y, seed):
    rng = np.random.default_rng(seed)
    low, shape, voxel = np.array([-3.0, -8.0, -1.0]), (12, 20, 4), 0.5
    pc_range = [*low, *(low + np.array(shape) * voxel)]  # not centred on the origin
    grid = rng.integers(0, 18, shape)
    (flipped, mask), ego2occ = flip_bev([grid, grid > 8], flip_x, flip_y, pc_range)
    index = rng.integers(0, shape, (50, 3))
    centres = low + (index + 0.5) * voxel
    moved = (np.c_[centres, np.ones(50)] @ ego2occ.T)[:, :3]
    new_index = np.floor((moved - low) / voxel).astype(int)
    np.testing.assert_array_equal(flipped[tuple(new_index.T)], grid[tuple(index.T)])
    np.testing.assert_array_equal(mask, flipped > 8)
    assert flipped.flags.c_contiguous


@given(ANGLES, st.floats(0.1, 10))
def test_quaternion(angles, scale):
    rotation = Rotation.from_euler("ZYX", angles)
    x, y, z, w = rotation.as_quat() * scale
    np.testing.assert_allclose(quaternion_to_matrix([w, x, y, z]), rotation.as_matrix(), atol=1e-12)


@pytest.mark.parametrize("bad", [[1, 0, 0], [0, 0, 0, 0], [1, 0, 0, np.nan], []])
def test_bad_quaternion(bad):
    with pytest.raises(ValueError, match="expected a quaternion"):
        quaternion_to_matrix(bad)


def test_golden_ray_origins():
    with np.load(GOLDEN / "occ_metrics.npz") as file:
        infos = json.loads(bytes(file["meta/infos"]))
        expected = [file[f"origins/{i}"] for i in range(3)]
    rotation = np.stack([quaternion_to_matrix(i["ego2global_rotation"]) for i in infos])
    translation = np.array([i["ego2global_translation"] for i in infos])
    mount = np.array([i["lidar2ego_translation"] for i in infos])
    for i in range(3):
        got = lidar_ray_origins(rotation, translation, mount, i)
        np.testing.assert_allclose(got, expected[i], atol=1e-6)


def straight_drive(num, step):
    positions = np.arange(num)[:, None] * np.array([step, 0.0, 0.0])
    return np.tile(np.eye(3), (num, 1, 1)), positions, np.tile([1.0, 0.0, 2.0], (num, 1))


def test_ray_origins_far_away_are_dropped():
    # In front: 1 + 10 k < 39, behind: 1 - 10 k > -39.
    origins = lidar_ray_origins(*straight_drive(20, 10.0), current=10)
    np.testing.assert_allclose(origins[:, 0], [-29, -19, -9, 1, 11, 21, 31])


def test_many_ray_origins_are_thinned_to_8_evenly():
    origins = lidar_ray_origins(*straight_drive(40, 1.0), current=10)
    kept = np.arange(40) - 10 + 1
    kept = kept[np.abs(kept) < 39]
    expected = kept[np.round(np.linspace(0, len(kept) - 1, 8)).astype(int)]
    np.testing.assert_allclose(origins[:, 0], expected)
    assert len(lidar_ray_origins(*straight_drive(8, 1.0), current=3)) == 8
