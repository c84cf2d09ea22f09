"""check_data.py finds values that contradict each other, and accepts good data."""

from __future__ import annotations

import copy

import numpy as np
import pytest
from mmengine.registry import DATASETS

import loaders.register  # noqa: F401 - enters the parts into the registries
from loaders.info_io import CAMERAS, load_infos, save_infos
from scripts.data_checks.consistency import check_labels_at_returns, check_together

SIZES = dict.fromkeys(CAMERAS, (90, 160))


def found(mini, tmp_path, change=lambda infos: None, sizes=None):
    """Return kinds and sentences of the findings about changed training infos."""
    content = load_infos(mini.root / "nuscenes_infos_train_mini_sweep.pkl")
    infos = copy.deepcopy(content.infos)
    change(infos)
    save_infos(tmp_path / "changed.pkl", infos, {})
    dataset = DATASETS.build(
        dict(type="NuScenesOcc3DDataset", data_root=str(mini.root), num_frames=2, pipeline=[],
             ann_file=str(tmp_path / "changed.pkl"), test_mode=True)
    )  # fmt: skip
    findings = list(check_together(dataset, sizes or SIZES))
    return {kind for _, kind, _ in findings}, " | ".join(sentence for *_, sentence in findings)


def every_camera(infos):
    for info in infos:
        for frame in (info["cams"], *info["cam_sweeps"]):
            yield from frame.values()


def test_nothing_is_wrong(mini, tmp_path):
    assert found(mini, tmp_path) == (set(), "")


def test_images_shrunk_with_unchanged_calibration(mini, tmp_path):
    """The config has the new size, so that every image loads."""
    kinds, text = found(mini, tmp_path, sizes={**SIZES, "CAM_BACK": (45, 80)})
    assert kinds == {"principal point"}
    assert "CAM_BACK: the principal point (81, 47) lies outside the middle third of 80 x 45" in text


def test_focal_length_in_millimetres(mini, tmp_path):
    def change(infos):
        for cam in every_camera(infos):
            cam["cam_intrinsic"] = cam["cam_intrinsic"] * np.array([[0.01, 1, 1]] * 2 + [[1] * 3])

    kinds, text = found(mini, tmp_path, change)
    assert kinds == {"focal length"} and "opening angle" in text


@pytest.mark.parametrize("part", ["all", "cameras", "lidar2ego"])
def test_millimetres(mini, tmp_path, part):
    def change(infos):
        for info in infos:
            if part != "cameras":
                keys = ["lidar2ego"] if part == "lidar2ego" else ["lidar2ego", "ego2global"]
                for key in keys:
                    info[f"{key}_translation"] = [1000 * v for v in info[f"{key}_translation"]]
        if part != "lidar2ego":
            seen = set()
            for cam in every_camera(infos):
                if id(cam) not in seen:
                    seen.add(id(cam))
                    cam["sensor2global_translation"] = 1000 * cam["sensor2global_translation"]

    kinds, text = found(mini, tmp_path, change)
    assert "sensor off the vehicle" in kinds
    assert "must be in metres" in text


def test_poses_that_jump(mini, tmp_path):
    """Jumps shorter than the way of a fast vehicle between key frames, and a turn on the spot."""

    def move(infos):
        infos[1]["ego2global_translation"][1] += 12

    kinds, text = found(mini, tmp_path, move)
    assert kinds == {"jump"} and "the velocity changes by" in text

    def turn(infos):
        w, x, y, z = infos[2]["ego2global_rotation"]
        infos[2]["ego2global_rotation"] = [-z, y, -x, w]  # half a turn

    kinds, text = found(mini, tmp_path, turn)
    assert "jump" in kinds and "the vehicle turns by 1" in text


def test_quaternions_of_another_order(mini, tmp_path):
    def change(infos):
        for info in infos:
            w, x, y, z = info["ego2global_rotation"]
            info["ego2global_rotation"] = [x, y, z, w]

    kinds, text = found(mini, tmp_path, change)
    assert "not driving forward" in kinds and "(w, x, y, z)" in text


def test_time_stamps_in_milliseconds(mini, tmp_path):
    def change(infos):
        for info in infos:
            info["timestamp"] //= 1000

    kinds, text = found(mini, tmp_path, change)
    assert "unit" in kinds and "must be in microseconds" in text


@pytest.fixture(scope="module")
def labelled():
    """Return a half-open room: LiDAR points on a floor and two walls, labels at the same places."""
    rng = np.random.default_rng(0)
    number = 800
    floor = np.c_[rng.uniform(-8, 8, (number, 2)), np.full(number, -1.5)]
    front = np.c_[np.full(number, 7.9), rng.uniform(-8, 8, number), rng.uniform(-1.5, 2, number)]
    left = np.c_[rng.uniform(0, 8, number), np.full(number, 5.1), rng.uniform(-1.5, 2, number)]
    return np.concatenate([floor, front, left]).astype(np.float32)


@pytest.mark.parametrize(
    ("spoil", "hint"),
    [
        (lambda grid: grid, None),
        (lambda grid: grid[::-1, ::-1], "rotated by 180 degrees"),
        (lambda grid: np.rot90(grid), "rotated by 90 degrees"),
        (lambda grid: np.swapaxes(grid, 0, 1), "with x and y exchanged"),
        (lambda grid: grid[:, ::-1], "with y mirrored"),
        (lambda grid: np.full_like(grid, 17), "0% of the returns"),
    ],
)
def test_labels_off_the_returns(mini, tmp_path, labelled, spoil, hint):
    (tmp_path / "roof.bin").write_bytes(np.c_[labelled, np.zeros((len(labelled), 2))].astype(
        np.float32).tobytes())  # fmt: skip
    content = load_infos(mini.root / "nuscenes_infos_train_mini_sweep.pkl")
    infos = copy.deepcopy(content.infos[:1])
    infos[0] |= {"lidar_path": str(tmp_path / "roof.bin"), "lidar2ego_rotation": [1, 0, 0, 0]}
    infos[0]["lidar2ego_translation"] = [0, 0, 1.8]
    save_infos(tmp_path / "one.pkl", infos, {})
    dataset = DATASETS.build(
        dict(type="NuScenesOcc3DDataset", data_root=str(mini.root), num_frames=1, pipeline=[],
             ann_file=str(tmp_path / "one.pkl"), test_mode=True)
    )  # fmt: skip
    sample = dataset.get_sample(0)
    grid = np.full(sample.grid_shape, 17, np.uint8)
    in_ego = labelled + np.array([0, 0, 1.8])
    voxel = np.floor((in_ego - [-40, -40, -1]) / 0.4).astype(int)
    grid[tuple(voxel.T)] = 11
    sample.voxel_semantics = np.ascontiguousarray(spoil(grid))
    findings = list(check_labels_at_returns(dataset, sample, 5))
    if hint is None:
        assert findings == []
        return
    ((what, kind, sentence),) = findings
    assert (what, kind) == ("labels", "off the LiDAR returns")
    assert hint in sentence
