"""LiDAR sweeps: the points of every sweep are at the dots that they measured."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
import torch
from mmengine.registry import DATASETS

import loaders.register  # noqa: F401 - enters the parts into the registries
from loaders.errors import BadDataError, MissingDataError
from loaders.info_io import load_infos, save_infos
from loaders.lidar import points as points_module
from loaders.lidar.points import FilterPoints, LoadLidarSweeps, read_lidar_points

TRAIN = "nuscenes_infos_train_mini_sweep.pkl"
KINDS = ["NuScenesOcc3DDataset", "NuScenesOccupancyDataset"]


def build(mini, kind=KINDS[0], steps=None, **changes):
    cfg = dict(
        type=kind,
        data_root=str(mini.root),
        ann_file=TRAIN,
        num_frames=1,
        seed=0,
        use_lidar=True,
        pipeline=steps or [dict(type="LoadLidarSweeps"), dict(type="RandomFlipBEV")],
    )
    return DATASETS.build({**cfg, **changes})


def lidar_frame(mini, sample):
    keys = [f for f in mini.frames[sample.scene_name, "LIDAR_TOP"] if f.is_key]
    return keys[mini.samples[sample.scene_name].index(sample.sample_token)]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("test_mode", [True, False])
def test_points_of_all_sweeps_lie_on_the_dots(mini, mini_world, kind, test_mode):
    dataset = build(mini, kind, test_mode=test_mode)
    flips = set()
    for epoch in range(1 if test_mode else 4):
        dataset.set_epoch(epoch)
        for idx in range(len(dataset)):
            sample = dataset[idx]
            scene_no = mini_world["scene_names"].index(sample.scene_name)
            key_no = mini.samples[sample.scene_name].index(sample.sample_token)
            rotation, translation = mini_world["ego_pose"](scene_no, 0.5 * key_no)
            in_ego = (mini_world["world_dots"](scene_no) - translation) @ rotation
            expected = in_ego @ sample.ego2occ[:3, :3].T + sample.ego2occ[:3, 3]
            points = sample.points
            assert points.dtype == np.float32 and points.shape[1] == 5
            is_dot = points[:, 3] < len(expected)  # intensity is the dot's number
            number = points[is_dot, 3].astype(int)
            np.testing.assert_allclose(points[is_dot, :3], expected[number], atol=2e-4)
            flips.add(bool(np.linalg.det(sample.ego2occ) < 0))
    assert flips == {False} if test_mode else flips == {False, True}


def test_unflipped_frame_is_that_of_the_labels(mini):
    ego = build(mini, test_mode=True)[1]
    lidar = build(mini, KINDS[1], test_mode=True)[1]
    stored = read_lidar_points(ego.lidar.paths[0])
    # OpenOccupancy: the key frame's points as they are in the file; Occ3D: moved to the vehicle.
    np.testing.assert_allclose(lidar.points[: len(stored), :3], stored[:, :3], atol=1e-5)
    moved = stored[:, :3] @ ego.lidar2ego[:3, :3].T + ego.lidar2ego[:3, 3]
    np.testing.assert_allclose(ego.points[: len(stored), :3], moved, atol=1e-5)


def test_order_time_lags_and_points_on_the_vehicle(mini, mini_world):
    num_roof = len(mini_world["roof"])
    dataset = build(mini, test_mode=True)
    for idx, num_sweeps in ((1, 3), (2, 6), (3, 9)):
        sample = dataset[idx]
        lags = sample.points[:, 4]
        changes = np.flatnonzero(np.diff(lags)) + 1
        blocks = np.split(sample.points, changes)
        assert len(blocks) == 1 + num_sweeps
        # The key frame first and whole; the others newest first, without the roof.
        sizes = [len(block) for block in blocks]
        assert sizes == [24 + num_roof, *[24] * num_sweeps]
        times = [f.time_us for f in mini.frames[sample.scene_name, "LIDAR_TOP"]]
        now = times.index(lidar_frame(mini, sample).time_us)
        expected = [(times[now] - times[now - k]) / 1e6 for k in range(num_sweeps + 1)]
        np.testing.assert_allclose([block[0, 4] for block in blocks], expected, atol=1e-6)
        assert expected[0] == 0 and expected[1] > 0


def test_fewer_sweeps_are_the_newest(mini):
    steps = [dict(type="LoadLidarSweeps", num_sweeps=2)]
    lags = np.unique(build(mini, test_mode=True, steps=steps)[3].points[:, 4])
    np.testing.assert_allclose(lags, [0, 1 / 6, 1 / 3], atol=1e-5)
    steps = [dict(type="LoadLidarSweeps", num_sweeps=0)]
    assert (build(mini, test_mode=True, steps=steps)[3].points[:, 4] == 0).all()


def test_without_sweeps_the_key_frame_stands_in(mini, mini_world):
    sample = build(mini, test_mode=True)[0]
    num_roof = len(mini_world["roof"])
    assert len(sample.points) == 24 * 10 + num_roof
    assert (sample.points[:, 4] == 0).all()
    np.testing.assert_array_equal(sample.points[24 + num_roof :][:24], sample.points[:24])


def test_range_filter(mini):
    box = (-20.0, -5.0, -3.0, 20.0, 10.0, 3.0)
    for point_range in (box, None):
        steps = [
            dict(type="LoadLidarSweeps"),
            dict(type="FilterPoints", point_range=point_range),
        ]
        changes = dict(pc_range=box) if point_range is None else {}
        got = build(mini, test_mode=True, steps=steps, **changes)[3].points
        full = build(mini, test_mode=True)[3].points
        inside = ((full[:, :3] >= box[:3]) & (full[:, :3] < box[3:])).all(axis=1)
        assert 0 < inside.sum() < len(full)
        np.testing.assert_array_equal(got, full[inside])


def test_packed_item(mini):
    steps = [
        dict(type="DrawImageAug", raw_hw=(90, 160), final_hw=(32, 96)),
        dict(type="LoadMultiViewImages", raw_hw=(90, 160)),
        dict(type="LoadOcc3DLabels"),
        dict(type="LoadLidarSweeps", lidar_cache_mb=1),
        dict(type="RandomFlipBEV", bev_flip_prob=(1.0, 0.0)),
        dict(type="PackOccSample"),
    ]
    item = build(mini, steps=steps)[1]
    points = item["inputs"]["points"]
    assert points.dtype == torch.float32 and points.shape[1] == 5
    assert torch.equal(item["data_samples"].ego2lidar, item["data_samples"].ego2occ)
    plain = build(mini, test_mode=True)[1].points
    np.testing.assert_allclose(points[:, 0], -plain[:, 0], atol=1e-6)
    np.testing.assert_array_equal(points[:, 1:], plain[:, 1:])
    again = build(mini, steps=steps)
    assert torch.equal(again[1]["inputs"]["points"], again[1]["inputs"]["points"])  # from memory
    # The same pipeline serves a data set without LiDAR.
    with_filter = [*steps[:-1], dict(type="FilterPoints"), steps[-1]]
    without = build(mini, steps=with_filter, use_lidar=False)[1]
    assert "points" not in without["inputs"] and "ego2lidar" not in without["data_samples"]


class TestErrors:
    def test_missing(self, tmp_path):
        with pytest.raises(MissingDataError, match=r"a\.bin does not exist: complete"):
            read_lidar_points(str(tmp_path / "a.bin"))

    @pytest.mark.parametrize("size", [0, 3, 39])
    def test_truncated(self, tmp_path, size):
        (tmp_path / "a.bin").write_bytes(bytes(size))
        with pytest.raises(BadDataError, match=rf"a\.bin is truncated \({size} bytes"):
            read_lidar_points(str(tmp_path / "a.bin"))

    def test_no_point_is_a_number(self, tmp_path):
        np.array([[1, 2, np.nan, 4, 5]], np.float32).tofile(tmp_path / "a.bin")
        with pytest.raises(BadDataError, match=r"a\.bin has no point with finite values"):
            read_lidar_points(str(tmp_path / "a.bin"))

    def test_folder_instead_of_file(self, tmp_path):
        with pytest.raises(BadDataError, match="cannot be read"):
            read_lidar_points(str(tmp_path))

    def test_misuse(self, mini):
        with pytest.raises(ValueError, match="needs LoadLidarSweeps"):
            build(mini, steps=[FilterPoints()])[0]
        with pytest.raises(ValueError, match="num_sweeps is -1"):
            LoadLidarSweeps(num_sweeps=-1)

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            (lambda sweep: sweep.pop("timestamp"), "lacks 'timestamp'"),
            (
                lambda sweep: sweep.update(sensor2lidar_rotation=[1]),
                "sensor2lidar_rotation' is not 3 x 3 finite numbers",
            ),
        ],
    )
    def test_broken_info(self, mini, tmp_path, change, message):
        content = load_infos(mini.root / TRAIN)
        change(content.infos[1]["lidar_sweeps"][0])
        save_infos(tmp_path / "a.pkl", content.infos, {"version": "v1.0-mini"})
        with pytest.raises(BadDataError, match=message):
            build(mini, ann_file=str(tmp_path / "a.pkl"))


def test_published_paths_load_from_any_root(mini, tmp_path):
    content = load_infos(mini.root / TRAIN)
    for info in content.infos:
        info["lidar_path"] = "./data/nuscenes/" + info["lidar_path"]
        for sweep in info["lidar_sweeps"]:
            sweep["data_path"] = "/elsewhere/nuscenes/" + sweep["data_path"]
    save_infos(tmp_path / "a.pkl", content.infos, {"version": "v1.0-mini"})
    os.symlink(mini.root, tmp_path / "moved")
    moved = build(
        mini, data_root=str(tmp_path / "moved"), ann_file=str(tmp_path / "a.pkl"), test_mode=True
    )[3]
    assert {str(Path(path).parents[2]) for path in moved.lidar.paths} == {str(tmp_path / "moved")}
    np.testing.assert_array_equal(moved.points, build(mini, test_mode=True)[3].points)


# ---------------------------------------------------------------- files of other columns


def some_points(number: int, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    xyz = rng.normal(0, (20, 15, 1), (number, 3))
    return np.c_[xyz, rng.integers(0, 256, number), np.arange(number) % 32].astype(np.float32)


def lidar_file(tmp_path, points) -> str:
    np.ascontiguousarray(points, dtype=np.float32).tofile(tmp_path / "a.bin")
    return str(tmp_path / "a.bin")


@pytest.mark.parametrize("load_dim", [3, 4, 5])
@pytest.mark.parametrize("number", [1, 60, 3000])
def test_missing_columns_are_zero(tmp_path, load_dim, number):
    points = some_points(number)
    loaded = read_lidar_points(lidar_file(tmp_path, points[:, :load_dim]), load_dim)
    expected = np.where(np.arange(5) < load_dim, points, 0)
    np.testing.assert_array_equal(loaded, expected)
    assert loaded.dtype == np.float32 and loaded.flags.writeable


@pytest.mark.parametrize("stored", [3, 4, 5])
@pytest.mark.parametrize("load_dim", [3, 4, 5])
@pytest.mark.parametrize("number", [60, 1200])  # divisible by all
def test_other_columns_are_never_read_scrambled(tmp_path, stored, load_dim, number):
    path = lidar_file(tmp_path, some_points(number)[:, :stored])
    if stored == load_dim:
        assert len(read_lidar_points(path, load_dim)) == number
    else:
        with pytest.raises(BadDataError, match=rf"a\.bin .* seems to have {stored} .*set load_dim"):
            read_lidar_points(path, load_dim)


@pytest.mark.parametrize("seed", range(20))
def test_random_numbers_of_four_columns_are_not_five(tmp_path, seed):
    points = np.random.default_rng(seed).random((10, 4)).astype(np.float32)
    with pytest.raises(BadDataError, match="set load_dim"):
        read_lidar_points(lidar_file(tmp_path, points))
    np.testing.assert_array_equal(read_lidar_points(str(tmp_path / "a.bin"), 4)[:, :4], points)


def test_fifth_column_may_be_a_time(tmp_path):
    points = some_points(400)
    points[:, 4] = np.linspace(0, 0.1, 400)
    np.testing.assert_array_equal(read_lidar_points(lidar_file(tmp_path, points)), points)


def test_size_of_other_columns_names_the_setting(tmp_path):
    with pytest.raises(BadDataError, match=r"is truncated .* load_dim"):
        read_lidar_points(lidar_file(tmp_path, some_points(7)[:, :4]))


@pytest.fixture
def logged(monkeypatch):
    """Return the messages of this test; no file has been named in the process before."""
    messages = []
    monkeypatch.setattr(points_module, "_noted", set())
    monkeypatch.setattr(points_module, "print_log", lambda text, **_: messages.append(text))
    return messages


def test_rows_that_are_no_numbers_are_dropped_and_told_once(tmp_path, logged):
    points = some_points(100)
    bad = np.zeros(100, bool)
    for row, column, value in ((3, 0, np.nan), (7, 3, np.inf), (8, 2, -np.inf), (99, 1, 1e30)):
        points[row, column] = value
        bad[row] = True
    points[20, 4] = np.nan  # the ring index is not used
    path = lidar_file(tmp_path, points)
    for _ in range(3):
        np.testing.assert_array_equal(read_lidar_points(path), points[~bad])
    assert [f"{path}: dropped 4 of 100 points" in message for message in logged] == [True]


def test_only_the_first_files_with_dropped_points_are_named(tmp_path, logged):
    points = some_points(50)
    points[3, 1] = np.nan
    for i in range(30):
        np.asarray(points).tofile(tmp_path / f"{i}.bin")
        assert len(read_lidar_points(str(tmp_path / f"{i}.bin"))) == 49
    assert len(logged) == 20
    assert "further files like it are not named" in logged[-1]


def test_content_that_is_no_points(tmp_path):
    floats = some_points(400).astype(np.float64)
    (tmp_path / "a.bin").write_bytes(floats.tobytes())
    with pytest.raises(BadDataError, match=r"a\.bin .* restore it"):
        read_lidar_points(str(tmp_path / "a.bin"))


def test_load_dim_of_the_transform(mini, tmp_path):
    for kind in ("samples", "sweeps"):
        for path in (mini.root / kind / "LIDAR_TOP").iterdir():
            target = tmp_path / kind / "LIDAR_TOP" / path.name
            target.parent.mkdir(parents=True, exist_ok=True)
            points = np.fromfile(path, np.float32).reshape(-1, 5)
            np.ascontiguousarray(points[:, :4]).tofile(target)
        for path in (mini.root / kind).iterdir():
            if path.name != "LIDAR_TOP":
                os.symlink(path, tmp_path / kind / path.name)
    files = dict(data_root=str(tmp_path), ann_file=str(mini.root / TRAIN), test_mode=True)
    sample = build(mini, steps=[LoadLidarSweeps(load_dim=4)], **files)[1]
    np.testing.assert_array_equal(sample.points, build(mini, test_mode=True)[1].points)
    with pytest.raises(BadDataError, match="load_dim"):
        build(mini, steps=[LoadLidarSweeps()], **files)[1]
    with pytest.raises(ValueError, match="load_dim is 6"):
        LoadLidarSweeps(load_dim=6)
