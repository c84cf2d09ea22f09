"""Concatenated, repeated, balanced and nested data sets, from samples to scores."""

from __future__ import annotations

import math
from collections import Counter

import mmengine.dataset
import numpy as np
import pytest
import torch
from mmengine.dataset import pseudo_collate
from mmengine.registry import DATA_SAMPLERS, DATASETS, METRICS
from torch.utils.data import DataLoader

import loaders.register  # noqa: F401 - enters the parts into the registries
from loaders.datasets.wrappers import leaf_configs, leaf_datasets, locate, map_leaf_configs
from loaders.errors import BadDataError, LoaderConfigError
from loaders.metrics.counts import CountAccumulator, merge
from loaders.metrics.occupancy import occupancy_confusion, occupancy_scores
from loaders.metrics.occupancy_metric import OccupancyMetric
from scripts.data_checks import checker
from scripts.scoring import predictions as score_predictions
from scripts.scoring.prior import count_labels
from scripts.scoring.scorer import Scorer, labels_only

TRAIN, VAL = "nuscenes_infos_train_mini_sweep.pkl", "nuscenes_infos_val_mini_sweep.pkl"
DRAW = dict(type="DrawImageAug", raw_hw=(90, 160), final_hw=(32, 96), resize_range=(0.55, 0.75))
FREE = 17


def leaf(mini, ann_file=TRAIN, steps=(), **changes):
    return dict(
        type="NuScenesOcc3DDataset",
        data_root=str(mini.root),
        ann_file=ann_file,
        num_frames=1,
        seed=0,
        pipeline=[DRAW, *steps],
        **changes,
    )


def concat(*datasets, **changes):
    return dict(type="ConcatDataset", datasets=list(datasets), **changes)


def repeat(dataset, times):
    return dict(type="RepeatDataset", dataset=dataset, times=times)


def nested(mini, **changes):
    """Return train (6 samples) once and val (3 samples) twice, all of it twice: 24."""
    train, val = leaf(mini, **changes), leaf(mini, VAL, **changes)
    return repeat(concat(train, repeat(val, 2)), 2)


def draws(dataset):
    return [dataset[i].image_aug for i in range(len(dataset))]


class TestIndices:
    def test_nested(self, mini):
        dataset = DATASETS.build(nested(mini, test_mode=True))
        train, val = leaf_datasets(dataset)
        assert (len(train), len(val), len(dataset)) == (6, 3, 24)
        expected = [*((train, i) for i in range(6)), *((val, i) for i in [0, 1, 2, 0, 1, 2])] * 2
        assert [locate(dataset, i) for i in range(24)] == expected
        assert locate(dataset, -1) == (val, 2)
        samples = [dataset[i] for i in range(24)]
        assert [sample.sample_idx for sample in samples] == list(range(24))
        tokens = [inner.get_data_info(i)["token"] for inner, i in expected]
        assert [sample.sample_token for sample in samples] == tokens
        with pytest.raises(IndexError):
            dataset[24]

    def test_configs(self, mini):
        cfg = nested(mini)
        assert leaf_configs(cfg) == [leaf(mini), leaf(mini, VAL)]
        changed = map_leaf_configs(cfg, lambda inner: {**inner, "test_mode": True})
        assert changed == nested(mini, test_mode=True) and cfg == nested(mini)

    def test_unknown_wrapper(self, mini):
        class Half:
            def __init__(self, dataset):
                self.dataset = dataset

            def __len__(self):
                return 3

        with pytest.raises(LoaderConfigError, match="Half does not specify the data set"):
            locate(Half(DATASETS.build(leaf(mini))), 0)


class TestRandomness:
    def test_repetitions_differ_and_are_reproducible(self, mini):
        dataset, second = (DATASETS.build(nested(mini)) for _ in range(2))
        for each in (dataset, second):
            sampler = DATA_SAMPLERS.build(dict(type="EpochSampler", dataset=each))
            sampler.set_epoch(3)
        first = draws(dataset)
        assert len(set(first)) == 24
        assert [second[i].image_aug for i in reversed(range(24))][::-1] == first
        sampler.set_epoch(4)
        assert not set(first) & set(draws(second))
        # The first data set is drawn as it is without wrappers.
        alone = DATASETS.build(leaf(mini))
        alone.set_epoch(3)
        assert draws(alone) == first[:6]

    @pytest.mark.parametrize("num_workers", [0, 2])
    def test_persistent_workers(self, mini, num_workers):
        dataset, second = (DATASETS.build(nested(mini)) for _ in range(2))
        sampler = DATA_SAMPLERS.build(dict(type="EpochSampler", dataset=dataset, seed=0))
        loader = DataLoader(
            dataset,
            batch_size=8,
            sampler=sampler,
            num_workers=num_workers,
            persistent_workers=num_workers > 0,
            collate_fn=list,
        )
        for epoch in range(2):
            sampler.set_epoch(epoch)
            DATA_SAMPLERS.build(dict(type="EpochSampler", dataset=second)).set_epoch(epoch)
            samples = [sample for batch in loader for sample in batch]
            assert sorted(sample.sample_idx for sample in samples) == list(range(24))
            assert all(s.image_aug == second[s.sample_idx].image_aug for s in samples)

    def test_epoch_reaches_through_mmengines_own_wrappers(self, mini):
        train, val = DATASETS.build(leaf(mini)), DATASETS.build(leaf(mini, VAL))
        inner = mmengine.dataset.ConcatDataset([train, val])
        for wrapper in (mmengine.dataset.RepeatDataset(train, times=2), inner):
            sampler = DATA_SAMPLERS.build(dict(type="EpochSampler", dataset=wrapper))
            sampler.set_epoch(3)
            first = draws(wrapper)
            assert draws(wrapper) == first
            sampler.set_epoch(4)
            assert not set(draws(wrapper)) & set(first)

    def test_what_replaces_a_broken_sample_has_its_position(self, mini):
        def fail_on_first(sample):
            if sample.sample_token == broken:
                raise BadDataError("broken")
            return sample

        broken = DATASETS.build(leaf(mini, VAL)).get_sample(0).sample_token
        val = leaf(mini, VAL, steps=[fail_on_first], on_error="skip")
        dataset = DATASETS.build(concat(leaf(mini), repeat(val, 2)))
        DATA_SAMPLERS.build(dict(type="EpochSampler", dataset=dataset)).set_epoch(0)
        samples = [dataset[i] for i in (6, 7, 9)]
        assert len({sample.sample_token for sample in samples}) == 1
        assert [sample.replaces for sample in samples] == [6, None, 9]
        assert len({sample.image_aug for sample in samples}) == 3
        assert leaf_datasets(dataset)[1].skipped == [0]


class TestMismatch:
    @pytest.mark.parametrize(
        ("change", "message"),
        [
            (dict(class_names=["car", "road"]), "different class_names .*number 2 has .'car', 'r"),
            (dict(voxel_size=[0.8, 0.8, 0.8]), r"different voxel_size .*\(0\.4, 0\.4, 0\.4\)"),
            (dict(pc_range=[-8, -8, -1, 8, 8, 5.4]), "different pc_range"),
        ],
    )
    @pytest.mark.parametrize("ignore_keys", [None, ["class_names", "pc_range", "voxel_size"]])
    def test_classes_and_grids(self, mini, change, message, ignore_keys):
        other = repeat(leaf(mini, VAL, **change), 2)
        with pytest.raises(LoaderConfigError, match=message):
            DATASETS.build(concat(leaf(mini), other, ignore_keys=ignore_keys))

    def test_no_data_set(self):
        with pytest.raises(LoaderConfigError, match="has no datasets"):
            DATASETS.build(concat())


class FewLabels:
    """Every sample has road, the first of each scene a car, one sample a bus."""

    def __init__(self):
        self.calls = 0

    @staticmethod
    def classes(token):
        cars = {4} if token.endswith("sample0") else set()
        return {11} | cars | ({3} if token == "scene-0061-sample2" else set())

    def __call__(self, sample):
        self.calls += 1
        labels = [*self.classes(sample.sample_token), FREE, FREE]
        sample.voxel_semantics = np.array(labels, np.uint8)[:, None, None]
        return sample


class TestBalance:
    def test_repeats_samples_of_rare_classes(self, mini):
        threshold, load = 0.9, FewLabels()
        cfg = concat(*(leaf(mini, name, steps=[load]) for name in (TRAIN, VAL)))
        dataset = DATASETS.build(
            dict(type="ClassBalancedDataset", dataset=cfg, oversample_thr=threshold)
        )
        assert load.calls == 9  # every label once
        plain = DATASETS.build(cfg)
        tokens = [plain[i].sample_token for i in range(9)]
        classes = [FewLabels.classes(token) for token in tokens]
        share = {c: np.mean([c in present for present in classes]) for c in (3, 4, 11)}
        assert 0 < share[3] < share[4] < share[11] == 1
        expected = Counter()
        for token, present in zip(tokens, classes, strict=True):
            factor = max(max(1.0, math.sqrt(threshold / share[c])) for c in present)
            expected[token] = math.ceil(factor)
        assert expected["scene-0061-sample2"] == 3
        samples = [dataset[i] for i in range(len(dataset))]
        assert Counter(sample.sample_token for sample in samples) == expected
        assert [sample.sample_idx for sample in samples] == list(range(len(dataset)))
        assert [sorted(present) for present in classes] == [plain.get_cat_ids(i) for i in range(9)]

    def test_needs_labels(self, mini):
        cfg = dict(type="ClassBalancedDataset", dataset=leaf(mini), oversample_thr=0.5)
        with pytest.raises(LoaderConfigError, match="loads no labels, so its classes cannot be"):
            DATASETS.build(cfg)


def predict(sample, wrong=False):
    """Predict every second occupied voxel as a sidewalk; with `wrong`, a wall in free space."""
    grid = np.asarray(sample["voxel_semantics"])
    coords = np.argwhere(grid == FREE if wrong else grid != FREE)[::2]
    return dict(pred_coords=coords, pred_labels=np.full(len(coords), 15 if wrong else 11))


def score(samples, size):
    metric = METRICS.build(dict(type="OccupancyMetric", mask="camera"))
    metric.dataset_meta = dict(class_names=[f"c{i}" for i in range(FREE)])
    metric.process(None, samples)
    return metric.evaluate(size)


class TestScores:
    LABELS = (dict(type="LoadOcc3DLabels"),)

    def test_two_samples_of_one_index(self):
        grid = np.full((4, 4, 4), FREE, np.uint8)
        grid[:, :, 0] = 11
        coords = np.argwhere(grid == 11)
        right = dict(voxel_semantics=grid, mask_camera=grid >= 0, sample_idx=0)
        right |= dict(pred_coords=coords, pred_labels=np.full(16, 11))
        wrong = {**right, "pred_labels": np.full(16, 4)}
        got = score([{**right, "sample_token": "a"}, {**wrong, "sample_token": "b"}], 2)
        assert got["occ3d/IoU_c11"] == 50.0  # 16 hits of 32 labelled voxels
        # Copies that pad a distributed evaluation have token and index of the original.
        right = {**right, "sample_token": "a"}
        assert score([right, right], 1)["occ3d/mIoU"] == 100.0
        # A sample that is listed twice counts twice.
        listed = [right, {**wrong, "sample_token": "a", "sample_idx": 1}]
        assert score(listed, 2)["occ3d/IoU_c11"] == 50.0

    def test_sample_without_identity(self):
        grid = np.zeros((1, 1, 1), np.uint8)
        with pytest.raises(LoaderConfigError, match="neither 'sample_token' nor 'sample_idx'"):
            score([dict(voxel_semantics=grid, mask_camera=grid == 0)], 1)

    def test_scorer_counts_all_data_sets(self, mini):
        cfg = nested(mini, steps=self.LABELS)
        predictors = {"p": lambda sample: predict(vars(sample), sample.scene_name[-1] == "3")}
        evaluator = dict(type="OccupancyMetric", mask="camera")
        got = [Scorer(cfg, evaluator).score(predictors, workers)["p"] for workers in (0, 2)]
        assert got[0] == got[1]
        confusion = np.zeros((FREE + 1, FREE + 1), np.int64)
        for inner, times in ((leaf(mini), 2), (leaf(mini, VAL), 4)):
            dataset = DATASETS.build({**inner, "pipeline": list(self.LABELS), "test_mode": True})
            for i in range(len(dataset)):
                sample = dataset[i]
                found = predictors["p"](sample)
                grid = np.full(sample.grid_shape, FREE)
                grid[tuple(found["pred_coords"].T)] = found["pred_labels"]
                confusion += times * occupancy_confusion(
                    grid, sample.voxel_semantics, sample.mask_camera, FREE + 1
                )
        assert got[0]["occ3d/mIoU"] == occupancy_scores(confusion, FREE).miou > 0

    def test_repetitions_on_several_processes(self):
        """100 samples three times, distributed over processes as by DefaultSampler."""
        rng = np.random.default_rng(0)
        counts = rng.integers(0, 9, (100, 2, 2))
        for world in (1, 2, 3, 7):
            states = []
            rounds = math.ceil(300 / world)
            for rank in range(world):
                accumulator = CountAccumulator(num_edges=8)
                for position in range(rank, rounds * world, world):
                    position %= 300  # padding
                    index = position % 100
                    accumulator.add((f"token{index}", position), counts[index])
                states.append(accumulator.state())
            total, number = merge(states)
            assert number == 300
            np.testing.assert_array_equal(total, 3 * counts.sum(axis=0))

    def test_prior_counts_all_data_sets(self, mini):
        cfgs = concat(leaf(mini, steps=self.LABELS), leaf(mini, VAL, steps=self.LABELS))
        both, train, val = (
            count_labels(DATASETS.build(labels_only(cfg))) for cfg in (cfgs, *cfgs["datasets"])
        )
        for sums, a, b in zip(both, train, val, strict=True):
            np.testing.assert_array_equal(sums, a.astype(int) + b)

    def test_metric_of_both_wrappers_through_a_loader(self, mini):
        """MMEngine's own ConcatDataset gives samples equal indices; their tokens differ."""
        steps = [
            dict(type="LoadMultiViewImages", raw_hw=(90, 160), image_mode="fast"),
            *self.LABELS,
            dict(type="PackOccSample"),
        ]
        parts = [leaf(mini, name, steps, test_mode=True) for name in (TRAIN, VAL)]
        wrappers = [
            DATASETS.build(concat(*parts)),
            mmengine.dataset.ConcatDataset([DATASETS.build(part) for part in parts]),
        ]
        results = []
        for dataset in wrappers:
            metric = OccupancyMetric()
            metric.dataset_meta = dataset.metainfo
            for batch in DataLoader(dataset, batch_size=2, collate_fn=pseudo_collate):
                samples = [sample.to_dict() for sample in batch["data_samples"]]
                samples = [{**s, **predict(s, s["scene_name"][-1] == "3")} for s in samples]
                metric.process(None, samples)
            assert len(metric.counted().seen) == 9
            results.append(metric.evaluate(9))
        assert results[0] == results[1] and 0 < results[0]["occ3d/mIoU"] < 100


def test_saved_predictions_of_one_token(tmp_path):
    def save(*images):
        metric = METRICS.build(dict(type="SavePredictions", out_dir=str(tmp_path)))
        for index, image in enumerate(images):
            sample = dict(sample_token="t", sample_idx=index, img_paths=[image])
            sample |= dict(pred_coords=torch.zeros(1, 3).int(), pred_labels=torch.zeros(1).int())
            metric.process(None, [sample])
        return metric.evaluate(len(images))

    assert save("a.jpg", "a.jpg") == {"saved_predictions": 1}
    with pytest.raises(BadDataError, match=r"two samples have the token t, .*a\.jpg.*b\.jpg"):
        save("a.jpg", "b.jpg")


CONFIG = """
custom_imports = dict(imports=['loaders.register'], allow_failed_imports=False)
train = dict(
    type='NuScenesOcc3DDataset', data_root={root!r}, ann_file={train!r}, num_frames=1,
    pipeline=[dict(type='LoadOcc3DLabels', label_cache_mb=4)], on_error='skip')
val = dict(**{{**train, 'ann_file': {val!r}, **{change!r}}})
train_dataloader = dict(dataset=dict(type='RepeatDataset', times=3, dataset=train))
test_dataloader = dict(dataset=dict(type='ConcatDataset', datasets=[
    train, dict(type='RepeatDataset', times=2, dataset=val)]))
test_evaluator = dict(type='OccupancyMetric', mask='camera')
"""


class TestCommands:
    def config(self, mini, tmp_path, **change):
        path = tmp_path / "config.py"
        text = CONFIG.format(root=str(mini.root), train=TRAIN, val=VAL, change=change)
        path.write_text(text)
        return str(path)

    def test_check_data_looks_at_each_data_set_once(self, mini, tmp_path, capsys):
        arguments = ["--full", "--workers", "0"]
        assert checker.main([self.config(mini, tmp_path), *arguments]) == 0
        out = capsys.readouterr().out
        assert "train: opened 6 files of 6 of 6 samples" in out
        assert "test, data set 2: opened 3 files of 3 of 3 samples" in out
        assert out.count("opened") == 2
        config = self.config(mini, tmp_path, ann_file="none.pkl")
        assert checker.main([config, *arguments]) == 1
        assert "data set test, data set 2" in capsys.readouterr().out
        config = self.config(mini, tmp_path, voxel_size=[0.8] * 3)
        assert checker.main([config, *arguments]) == 2
        error = capsys.readouterr().err.strip().splitlines()
        assert len(error) == 1 and "different voxel_size cannot be concatenated" in error[0]

    def test_predictions_on_disk(self, mini, tmp_path, capsys):
        config = self.config(mini, tmp_path)
        cfg = score_predictions.load_config(config, {})
        scorer = score_predictions.split_scorer(cfg)
        save = METRICS.build(dict(type="SavePredictions", out_dir=str(tmp_path / "saved")))
        samples = [vars(scorer.dataset[i]) for i in range(len(scorer.dataset))]
        samples = [
            {k: torch.tensor(v) if k.startswith("pred") else v for k, v in sample.items()}
            for sample in ({**s, **predict(s)} for s in samples)
        ]
        save.process(None, samples)
        assert save.evaluate(12) == {"saved_predictions": 9}
        report = score_predictions.score_folder(config, {}, tmp_path / "saved", 0)
        assert report["num_samples"] == 12
        expected = score(samples, 12)
        assert expected["occ3d/mIoU"] == report["metrics"]["occ3d/mIoU"] > 0
