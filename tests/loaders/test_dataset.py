from __future__ import annotations

import copy
import os
import pickle
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from mmengine.dataset import pseudo_collate
from mmengine.logging import MMLogger
from mmengine.registry import DATA_SAMPLERS, DATASETS, METRICS
from torch.utils.data import DataLoader

import loaders.register  # noqa: F401 - enters the parts into the registries
from loaders.datasets.occupancy_dataset import _samples_of_scenes
from loaders.errors import BadDataError, LoaderConfigError, MissingDataError
from loaders.info_io import CAMERAS, load_infos, save_infos

TRAIN, VAL = "nuscenes_infos_train_mini_sweep.pkl", "nuscenes_infos_val_mini_sweep.pkl"
FINAL_HW = (32, 96)


def pipeline(mode="exact", resize_range=(0.55, 0.75), rotate=(0.0, 0.0), raw_hw=(90, 160)):
    return [
        dict(
            type="DrawImageAug",
            raw_hw=raw_hw,
            final_hw=FINAL_HW,
            resize_range=resize_range,
            rotate_range_deg=rotate,
        ),
        dict(type="LoadMultiViewImages", raw_hw=raw_hw, image_mode=mode),
        dict(type="LoadOcc3DLabels"),
        dict(type="RandomFlipBEV"),
        dict(type="PackOccSample"),
    ]


def build(mini, ann_file=TRAIN, **changes):
    cfg = dict(
        type="NuScenesOcc3DDataset",
        data_root=str(mini.root),
        ann_file=ann_file,
        pipeline=pipeline(),
        num_frames=3,
        seed=0,
    )
    return DATASETS.build({**cfg, **changes})


def with_infos(mini, tmp_path, change):
    """Write an info file of the training split after `change(infos)`, outside the data root."""
    content = load_infos(mini.root / TRAIN)
    infos = copy.deepcopy(content.infos)
    change(infos)
    save_infos(tmp_path / "changed.pkl", infos, {"version": content.metadata["version"]})
    return str(tmp_path / "changed.pkl")


def test_item_keeps_the_contract(mini):
    dataset = build(mini, test_mode=True, with_ray_origins=True)
    assert len(dataset) == 6
    item = dataset[2]
    image = item["inputs"]["img"]
    assert image.shape == (18, 3, *FINAL_HW)
    assert image.dtype == torch.uint8
    sample = item["data_samples"]
    assert sample.ego2img.shape == (18, 4, 4) and sample.ego2img.dtype == torch.float32
    assert torch.equal(sample.ego2occ, torch.eye(4))
    assert sample.voxel_semantics.dtype == torch.uint8
    assert sample.mask_camera.dtype == sample.mask_lidar.dtype == torch.bool
    assert sample.sample_idx == 2
    assert sample.sample_token == "scene-0061-sample2"
    assert sample.scene_name == "scene-0061"
    assert len(sample.img_paths) == len(sample.img_timestamps) == 18
    assert len(sample.class_names) == 17
    assert sample.pc_range == (-40, -40, -1, 40, 40, 5.4)
    assert sample.ida_mat.shape == (4, 4)
    assert sample.ray_origins.shape == (4, 3)
    truth = mini.labels[sample.sample_token]
    np.testing.assert_array_equal(sample.voxel_semantics, truth["semantics"])
    np.testing.assert_array_equal(sample.mask_camera, truth["mask_camera"])
    np.testing.assert_array_equal(sample.mask_lidar, truth["mask_lidar"])
    assert "ray_origins" not in build(mini, test_mode=True)[0]["data_samples"]


def test_metainfo_serves_the_metrics(mini):
    meta = build(mini).metainfo
    assert len(meta["class_names"]) == meta["empty_label"] == 17


def test_frames_are_current_first_in_camera_order(mini):
    sample = build(mini, test_mode=True, num_frames=4).get_sample(3)
    names = [Path(p).parent.name for p in sample.img_paths]
    assert names == list(CAMERAS) * 4
    # 5 sweeps and a key frame per interval of 0.5 s: every sixth frame is the next key frame.
    folders = [Path(p).parents[1].name for p in sample.img_paths[::6]]
    assert folders == ["samples"] * 4
    front = mini.frames["scene-0061", "CAM_FRONT"]
    keys = [frame for frame in front if frame.is_key][::-1]
    assert [Path(p).name for p in sample.img_paths[::6]] == [Path(k.filename).name for k in keys]
    assert list(sample.img_timestamps[::6]) == [k.time_us for k in keys]
    first = build(mini, test_mode=True, num_frames=3).get_sample(0)
    assert first.img_paths[:6] == first.img_paths[6:12] == first.img_paths[12:]


def test_training_takes_one_interval_for_all_frames(mini):
    dataset = build(mini, num_frames=3)
    front = [Path(f.filename).name for f in mini.frames["scene-0061", "CAM_FRONT"]]
    intervals = set()
    for epoch in range(30):
        dataset.set_epoch(epoch)
        sample = dataset.get_sample(3)
        steps = [18 - front.index(Path(p).name) for p in sample.img_paths[::6]]
        assert steps[2] == 2 * steps[1]
        intervals.add(steps[1])
    assert intervals == {4, 5, 6, 7, 8}


@pytest.mark.parametrize("mode", ["exact", "fast"])
@pytest.mark.parametrize("test_mode", [True, False])
def test_dots_of_the_world_are_where_ego2img_says(mini, mini_world, mode, test_mode):
    """With poses, history, calibration and augmentation, white pixels are where dots project."""
    rotate = (0.0, 0.0) if test_mode else (-8.0, 8.0)
    dataset = build(mini, test_mode=test_mode, pipeline=pipeline(mode, rotate=rotate))
    errors = []
    for idx in range(len(dataset)):
        item = dataset[idx]
        sample = item["data_samples"]
        scene_no = mini_world["scene_names"].index(sample.scene_name)
        key_no = mini.samples[sample.scene_name].index(sample.sample_token)
        rotation, translation = mini_world["ego_pose"](scene_no, 0.5 * key_no)
        in_global = mini_world["world_dots"](scene_no)
        in_ego = (in_global - translation) @ rotation
        for path, image, ego2img in zip(
            sample.img_paths, item["inputs"]["img"], sample.ego2img.double().numpy(), strict=True
        ):
            # What the augmentation must keep: dots whose 5 x 5 pixels lie inside the raw image.
            truth = mini.truth(path)
            raw, depth = mini_world["project"](in_global, truth.rotation, truth.translation)
            h, w = mini_world["raw_hw"]
            drawn = (depth > 1) & (raw >= 3).all(1)
            drawn &= (raw < np.array([w - 3, h - 3])).all(1)
            homogeneous = np.c_[in_ego, np.ones(len(in_ego))] @ ego2img.T
            u, v = (homogeneous[:, :2] / homogeneous[:, 2:3]).T
            inside = drawn & (u > 5) & (u < FINAL_HW[1] - 5) & (v > 5) & (v < FINAL_HW[0] - 5)
            for x, y in zip(u[inside], v[inside], strict=True):
                left, top = int(x) - 4, int(y) - 4
                white = image.double().mean(0)[top : top + 9, left : left + 9].numpy()
                white = np.maximum(white - 80, 0)
                grid = np.indices(white.shape) + 0.5
                centre_y, centre_x = (grid * white).sum((1, 2)) / white.sum()
                errors.append([left + centre_x - x, top + centre_y - y])
    # Dots are drawn up to half a pixel off. In training the resized image is up to a pixel smaller
    # than in the matrix (sizes are truncated, as published) and rotation takes nearest pixels.
    assert len(errors) > 200
    assert np.abs(errors).max() < (0.6 if test_mode else 1.2)
    assert np.abs(np.median(errors, axis=0)).max() < (0.1 if test_mode else 0.4)


def test_bev_flip_in_training_keeps_image_and_label_consistent(mini):
    dataset = build(mini)
    seen = set()
    for epoch in range(12):
        dataset.set_epoch(epoch)
        sample = dataset[1]["data_samples"]
        flip_x, flip_y = (bool(sample.ego2occ[i, i] < 0) for i in range(2))
        seen.add((flip_x, flip_y))
        axes = [axis for axis, flip in enumerate((flip_x, flip_y)) if flip]
        truth = np.flip(mini.labels[sample.sample_token]["semantics"], axes)
        np.testing.assert_array_equal(sample.voxel_semantics, truth)
        mask = np.flip(mini.labels[sample.sample_token]["mask_camera"], axes)
        np.testing.assert_array_equal(sample.mask_camera, mask)
    assert len(seen) == 4


def test_ray_origins_are_the_lidars_of_the_scene(mini, mini_world):
    dataset = build(mini, test_mode=True, with_ray_origins=True)
    sample = dataset.get_sample(1)
    rotation, translation = mini_world["ego_pose"](0, 0.5)
    expected = []
    for k in range(4):
        r, t = mini_world["ego_pose"](0, 0.5 * k)
        expected.append((r @ mini_world["lidar_offset"] + t - translation) @ rotation)
    np.testing.assert_allclose(sample.ray_origins, expected, atol=1e-6)


def draw_of(dataset, idx):
    sample = dataset[idx]["data_samples"]
    return sample.ida_mat.tolist(), sample.ego2occ.tolist(), sample.img_paths


def test_randomness_depends_on_seed_epoch_and_index_alone(mini):
    dataset, second = build(mini), build(mini)
    for each in (dataset, second):
        each.set_epoch(3)
    first = [draw_of(dataset, i) for i in range(6)]
    assert [draw_of(second, i) for i in reversed(range(6))][::-1] == first
    dataset.set_epoch(4)
    assert all(draw_of(dataset, i)[0] != first[i][0] for i in range(6))
    other = build(mini, seed=1)
    other.set_epoch(3)
    assert all(draw_of(other, i)[0] != first[i][0] for i in range(6))


def test_default_seed_is_torchs(mini):
    torch.manual_seed(5)
    dataset = build(mini, seed=None)
    second = build(mini, seed=5)
    for each in (dataset, second):
        each.set_epoch(0)
    assert draw_of(dataset, 0) == draw_of(second, 0)


@pytest.mark.parametrize("num_workers", [0, 2])
def test_persistent_workers_draw_anew_each_epoch_and_alike_for_any_number(mini, num_workers):
    dataset = build(mini)
    sampler = DATA_SAMPLERS.build(dict(type="EpochSampler", dataset=dataset, shuffle=True, seed=0))
    loader = DataLoader(
        dataset,
        batch_size=2,
        sampler=sampler,
        num_workers=num_workers,
        persistent_workers=num_workers > 0,
        collate_fn=pseudo_collate,
    )
    second = build(mini)
    order = []
    for epoch in range(2):
        sampler.set_epoch(epoch)
        second.set_epoch(epoch)
        samples = [s for batch in loader for s in batch["data_samples"]]
        order.append([s.sample_idx for s in samples])
        assert sorted(order[-1]) == list(range(6))
        for sample in samples:
            assert sample.ida_mat.tolist() == draw_of(second, sample.sample_idx)[0]
    assert order[0] != order[1]


def test_without_the_sampler_numpys_state_seeds(mini):
    dataset = build(mini)
    np.random.seed(7)
    first = draw_of(dataset, 0)
    assert draw_of(dataset, 0) != first
    np.random.seed(7)
    assert draw_of(dataset, 0) == first


def test_subset(mini):
    dataset = build(mini, test_mode=True, indices=[4, 1])
    assert [dataset.get_sample(i).sample_token for i in range(2)] == [
        "scene-0553-sample0",
        "scene-0061-sample1",
    ]
    assert dataset.get_sample(1).sample_idx == 1


def test_first_and_last(mini):
    def tokens(indices):
        dataset = build(mini, indices=indices)
        return [dataset.get_sample(i).sample_token for i in range(len(dataset))]

    every = tokens(None)
    assert tokens(6) == tokens(-6) == every
    assert tokens(2) == every[:2] and tokens(-2) == every[-2:] and tokens([-1]) == every[-1:]
    for indices in (0, 7, -7, [], [6]):
        with pytest.raises(LoaderConfigError, match=r"indices is .* has 6 samples"):
            tokens(indices)


def test_file_of_the_published_tool_chain_loads(mini, tmp_path):
    """Paths of another machine, numpy scalars, lists for arrays, further keys."""

    def publish(infos):
        for info in infos:
            info["sweeps"], info["gt_names"] = [], np.array(["car"])
            info["lidar_path"] = "./data/nuscenes/" + info["lidar_path"]
            for cam in [c for s in [info["cams"], *info["cam_sweeps"]] for c in s.values()]:
                cam["data_path"] = "./data/nuscenes/" + cam["data_path"]
                cam["sensor2global_translation"] = list(cam["sensor2global_translation"])
                cam["timestamp"] = np.int64(cam["timestamp"])
                cam["sensor2ego_rotation"] = [1, 0, 0, 0]

    path = with_infos(mini, tmp_path, publish)
    content = pickle.loads(Path(path).read_bytes())
    Path(path).write_bytes(pickle.dumps(content, protocol=3))
    published, own = (build(mini, test_mode=True, ann_file=f) for f in (path, TRAIN))
    for idx in range(6):
        a, b = published.get_sample(idx), own.get_sample(idx)
        assert a.img_paths == b.img_paths
        np.testing.assert_allclose(a.ego2img, b.ego2img)


def test_moved_data_root(mini, tmp_path):
    os.symlink(mini.root, tmp_path / "moved")
    dataset = build(mini, data_root=str(tmp_path / "moved"))
    assert dataset[0]["data_samples"].img_paths[0].startswith(str(tmp_path / "moved"))


class TestSkipping:
    @pytest.fixture
    def damaged(self, mini, tmp_path):
        """Return a copy with two broken samples: 1 without labels, 2 with a truncated image."""
        root = tmp_path / "nuscenes"
        for folder in ("samples", "gts"):
            shutil.copytree(mini.root / folder, root / folder)
        os.symlink(mini.root / "sweeps", root / "sweeps")
        shutil.copy(mini.root / TRAIN, root / TRAIN)
        (root / "gts" / "scene-0061" / "scene-0061-sample1" / "labels.npz").unlink()
        image = Path(build(mini, test_mode=True).get_sample(2).img_paths[3])
        image = root / image.relative_to(mini.root)
        image.write_bytes(image.read_bytes()[:200])
        return root

    def build(self, mini, damaged, **changes):
        return build(mini, data_root=str(damaged), num_frames=1, **changes)

    def test_raises_by_default_and_names_the_file(self, mini, damaged):
        dataset = self.build(mini, damaged)
        with pytest.raises(MissingDataError, match=r"scene-0061-sample1/labels\.npz"):
            dataset[1]
        with pytest.raises(BadDataError, match=r"CAM_BACK.*truncated"):
            dataset[2]

    @pytest.mark.parametrize("num_workers", [0, 2])
    @pytest.mark.parametrize("test_mode", [False, True])
    def test_skips_counts_and_logs(self, mini, damaged, num_workers, test_mode, caplog):
        logger = MMLogger.get_instance("skip-test", log_level="INFO")
        logger.addHandler(caplog.handler)
        dataset = self.build(mini, damaged, on_error="skip", test_mode=test_mode)
        loader = DataLoader(dataset, num_workers=num_workers, collate_fn=pseudo_collate)
        for _ in range(2):
            samples = [batch["data_samples"][0] for batch in loader]
            assert [sample.sample_idx for sample in samples] == [0, 3, 3, 3, 4, 5]
            assert [sample.get("replaces") for sample in samples] == [None, 1, 2, *[None] * 3]
        assert dataset.skipped == [1, 2]
        if not num_workers:
            assert caplog.text.count("skipped sample 1 (1 of 6 so far)") == 1
            assert caplog.text.count("skipped sample 2 (2 of 6 so far)") == 1

    def test_metrics_leave_the_stand_in_out(self, mini, damaged):
        def score(dataset, indices):
            metric = METRICS.build(dict(type="OccupancyMetric"))
            metric.dataset_meta = dataset.metainfo
            for idx in indices:
                sample = dataset[idx]["data_samples"].to_dict()
                coords = torch.nonzero(sample["voxel_semantics"] == 11)[::2]
                sample.update(pred_coords=coords, pred_labels=torch.full((len(coords),), 11))
                metric.process(None, [sample])
            return metric.evaluate(len(dataset))

        skipping = self.build(mini, damaged, on_error="skip", test_mode=True)
        assert score(skipping, range(6)) == score(build(mini, test_mode=True), [0, 3, 4, 5])

    def test_stops_when_nothing_can_be_loaded(self, mini, damaged):
        shutil.rmtree(damaged / "gts")
        dataset = self.build(mini, damaged, on_error="skip")
        with pytest.raises(BadDataError, match=r"sample 0 and the following ones .*check_data\.py"):
            dataset[0]
        assert len(dataset.skipped) == 6

    def test_unknown_choice(self, mini):
        with pytest.raises(ValueError, match="on_error is 'ignore'"):
            build(mini, on_error="ignore")


@pytest.mark.parametrize("split", ["train", "val"])
def test_info_file_of_a_split(mini, split):
    derived = build(mini, ann_file=None, version="v1.0-mini", split=split)
    named = build(mini, ann_file={"train": TRAIN, "val": VAL}[split])
    assert derived.ann_file == named.ann_file
    tokens = [
        [data.get_data_info(i)["token"] for i in range(len(data))] for data in (derived, named)
    ]
    assert tokens[0] == tokens[1]


def test_one_pipeline_for_training_and_evaluation(mini):
    """In test mode, transforms of the training have no effect."""
    random = pipeline(rotate=(-5.0, 5.0))
    plain = [step for step in pipeline(resize_range=None) if step["type"] != "RandomFlipBEV"]
    got, expected = (build(mini, pipeline=p, test_mode=True)[2] for p in (random, plain))
    assert torch.equal(got["inputs"]["img"], expected["inputs"]["img"])
    for key in ("ego2img", "ego2occ", "voxel_semantics", "mask_camera"):
        assert torch.equal(got["data_samples"].get(key), expected["data_samples"].get(key))


class TestErrors:
    def test_missing_data_root(self, mini):
        with pytest.raises(MissingDataError, match=r"data root /nowhere does not exist.*make_toy"):
            build(mini, data_root="/nowhere")

    def test_missing_info_file(self, mini):
        with pytest.raises(MissingDataError, match=r"none\.pkl does not exist.*gen_sweep_info\.py"):
            build(mini, ann_file="none.pkl")

    def test_other_version(self, mini):
        with pytest.raises(BadDataError, match=r"made for v1\.0-mini, but .* v1\.0-trainval"):
            build(mini, version="v1.0-trainval")

    def test_other_root(self, mini, tmp_path):
        (tmp_path / "other").mkdir()
        ann_file = str(mini.root / TRAIN)
        with pytest.raises(
            MissingDataError, match=r"not under .*other.* made for another data root"
        ):
            build(mini, data_root=str(tmp_path / "other"), ann_file=ann_file)

    def test_no_samples(self, mini, tmp_path):
        with pytest.raises(BadDataError, match="has no samples"):
            build(mini, ann_file=with_infos(mini, tmp_path, lambda infos: infos.clear()))

    def test_missing_camera(self, mini, tmp_path):
        def drop(infos):
            del infos[1]["cams"]["CAM_BACK"]

        with pytest.raises(
            BadDataError, match="key frame scene-0061-sample1 has no camera CAM_BACK"
        ):
            build(mini, ann_file=with_infos(mini, tmp_path, drop))

    def test_broken_pose(self, mini, tmp_path):
        def spoil(infos):
            infos[1]["ego2global_rotation"] = [1, 0]

        with pytest.raises(BadDataError, match="'ego2global_rotation' is not 4 finite numbers"):
            build(mini, ann_file=with_infos(mini, tmp_path, spoil))

    def test_wrong_raw_size(self, mini):
        dataset = build(mini, pipeline=pipeline(raw_hw=(900, 1600)))
        with pytest.raises(BadDataError, match=r"90 x 160 pixels, expected 900 x 1600: set raw_hw"):
            dataset[0]

    def test_unknown_key(self, mini):
        with pytest.raises(TypeError, match="nonsense"):
            build(mini, nonsense=1)

    @pytest.mark.parametrize("given", [{}, dict(version="v1.0-mini"), dict(split="val")])
    def test_nothing_names_the_info_file(self, mini, given):
        with pytest.raises(
            LoaderConfigError, match="no ann_file: set it, or both version and split"
        ):
            build(mini, ann_file=None, **given)

    def test_num_frames(self, mini):
        with pytest.raises(ValueError, match="num_frames is 0"):
            build(mini, num_frames=0)

    def test_worker_hands_the_sentence_on(self, mini, tmp_path):
        dataset = build(mini, pipeline=pipeline(raw_hw=(900, 1600)))
        loader = DataLoader(dataset, num_workers=1, collate_fn=pseudo_collate)
        with pytest.raises(BadDataError, match="expected 900 x 1600"):
            next(iter(loader))


def test_scenes_of_a_split(mini):
    names = ["b", "b", "a", "a", "a", "c"]
    assert _samples_of_scenes(":-1", names) == [0, 1, 2, 3, 4]
    assert _samples_of_scenes("-1:", names) == [5]
    assert _samples_of_scenes(["c", "b"], names) == [0, 1, 5]
    for scenes, words in (
        ("3:", "none is left"),
        ("all", "use a slice"),
        ("1:2:3", "use a slice"),
        (["d"], "names 'd'"),
    ):
        with pytest.raises(LoaderConfigError, match=words):
            _samples_of_scenes(scenes, names)
    with pytest.raises(LoaderConfigError, match="exclude each other"):
        build(mini, scenes=":1", indices=2)
    dataset = build(mini, scenes=["scene-0061"])
    assert len(dataset) == sum(
        info["scene_name"] == "scene-0061" for info in load_infos(mini.root / TRAIN).infos
    )


def test_a_sample_tells_its_place_in_the_drive(mini, mini_world):
    dataset = build(mini)
    sample = dataset[1]["data_samples"]
    assert sample.sequence_id is None and sample.frame_index == 1
    assert sample.timestamp == dataset.timestamps[1]
    np.testing.assert_array_equal(sample.ego2global, dataset.ego2global[1])
    dataset.set_epoch(3)
    dataset.set_in_sequence(True)
    assert dataset[1]["data_samples"].sequence_id == 3
    assert build(mini, test_mode=True)[0]["data_samples"].sequence_id == 0


def test_frames_of_a_sequence_are_flipped_and_rotated_alike(mini):
    steps = pipeline()
    steps.insert(-1, dict(type="RandomTurnScaleBEV", bev_rotation_deg=30.0))
    dataset = build(mini, pipeline=steps)
    draws = set()
    for epoch, in_sequence in ((3, True), (4, True), (4, False)):
        dataset.set_epoch(epoch)
        dataset.set_in_sequence(in_sequence)
        samples = [dataset[i]["data_samples"] for i in range(len(dataset))]
        moves = {(s.scene_name, tuple(s.ego2occ.flatten().tolist())) for s in samples}
        scenes = {sample.scene_name for sample in samples}
        assert len(moves) == (len(scenes) if in_sequence else len(samples))
        assert len({tuple(s.ida_mat.flatten().tolist()) for s in samples}) == len(samples)
        assert not draws & moves  # new ones in every epoch
        draws |= moves
