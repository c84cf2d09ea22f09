from __future__ import annotations

import errno
import itertools
import logging
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from mmengine.evaluator import Evaluator
from mmengine.logging import MMLogger
from mmengine.structures import BaseDataElement

import loaders.register  # noqa: F401 - enters the parts into the registries
from loaders.errors import LoaderConfigError
from loaders.metrics.counts import CountAccumulator, merge
from loaders.metrics.occupancy import dense_labels, occupancy_confusion, occupancy_scores
from loaders.metrics.occupancy_metric import OccupancyMetric
from loaders.metrics.ray_cache import RayCache
from loaders.metrics.ray_iou import (
    cast_label_rays,
    ray_directions,
    ray_iou,
    ray_scores,
    sample_ray_counts,
)
from loaders.metrics.ray_iou_metric import RayIoUMetric
from loaders.metrics.tables import format_table
from models.errors import UserError

GOLDEN = Path(__file__).resolve().parents[1] / "golden" / "occ_metrics.npz"
RANGE, VOXEL, FREE = (-40.0, -40.0, -1.0, 40.0, 40.0, 5.4), (0.4, 0.4, 0.4), 17
CLASSES = [f"c{i}" for i in range(17)]


@pytest.fixture(scope="module")
def golden():
    with np.load(GOLDEN) as file:
        return dict(file)


def triple(golden, i):
    return golden[f"pred/{i}"], golden[f"gt/{i}"], golden[f"mask_camera/{i}"]


def check_of_true_classes(scores, confusion, expected):
    """The file omits classes that are only predicted; the benchmark counts them as 0."""
    only_predicted = (confusion.sum(axis=1) == 0) & (confusion.sum(axis=0) > 0)
    assert only_predicted.sum() == 1
    assert (scores.per_class[only_predicted] == 0).all()
    others = np.where(only_predicted, np.nan, scores.per_class)
    np.testing.assert_allclose(others, expected, rtol=1e-12)


class TestGolden:
    def test_occ3d(self, golden):
        confusion = sum(occupancy_confusion(*triple(golden, i), 18) for i in range(3))
        np.testing.assert_array_equal(confusion, golden["miou_occ3d/hist"])
        scores = occupancy_scores(confusion, FREE)
        check_of_true_classes(scores, confusion, golden["miou_occ3d/per_class"])
        assert scores.miou == 33.53  # 16 of 17 classes of the file's 35.62, and a 0
        assert float(golden["miou_occ3d/mean"]) == 35.62

    def test_openoccupancy(self, golden):
        confusion = sum(
            occupancy_confusion(
                golden[f"oo_pred/{i}"], golden[f"oo_gt/{i}"], golden[f"oo_mask/{i}"], 17
            )
            for i in range(2)
        )
        scores = occupancy_scores(confusion, 16)
        check_of_true_classes(scores, confusion, golden["openocc/per_class"])
        assert scores.miou == pytest.approx(float(golden["openocc/mIoU"]) * 15 / 16, abs=0.01)
        assert scores.occupied_iou == float(golden["openocc/IoU"])

    def test_rays(self, golden):
        np.testing.assert_array_equal(ray_directions(), golden["rays"])
        pred, gt, _ = triple(golden, 0)
        label, depth = cast_label_rays([pred, gt], golden["origins/0"], RANGE, VOXEL, FREE)
        for i, name in enumerate(("ray_pred/0", "ray_gt/0")):
            np.testing.assert_array_equal(label[i], golden[name][:, 0])
            np.testing.assert_allclose(depth[i], golden[name][:, 1], atol=1e-3)

    def test_ray_iou(self, golden):
        preds, gts, _ = zip(*(triple(golden, i) for i in range(3)), strict=True)
        origins = [golden[f"origins/{i}"] for i in range(3)]
        scores = ray_iou(preds, gts, origins, RANGE, VOXEL, 18, FREE)
        np.testing.assert_allclose(scores.per_class / 100, golden["rayiou/per_class"], rtol=1e-12)
        means = [scores.mean, *scores.per_threshold]
        np.testing.assert_allclose(np.array(means) / 100, golden["rayiou/mean"], rtol=1e-12)

    @pytest.mark.parametrize("batch", [1, 2])
    def test_metrics_through_the_evaluator(self, golden, batch):
        evaluator = Evaluator([dict(type="OccupancyMetric"), dict(type="RayIoUMetric")])
        evaluator.dataset_meta = {"class_names": CLASSES}
        samples = [element(golden, i) for i in range(3)]
        for first in range(0, 3, batch):
            evaluator.process(data_samples=samples[first : first + batch], data_batch=None)
        result = evaluator.evaluate(3)
        assert result["occ3d/mIoU"] == 33.53
        expected = np.round(golden["rayiou/mean"] * 100, 2)
        keys = ("ray/RayIoU", "ray/RayIoU@1", "ray/RayIoU@2", "ray/RayIoU@4")
        assert [result[key] for key in keys] == list(expected)
        assert result["occ3d/IoU_c4"] == round(float(golden["miou_occ3d/per_class"][4]), 2)
        assert result["occ3d/IoU_c12"] == 0  # only predicted
        per_class = np.round(golden["rayiou/per_class"].mean(axis=0) * 100, 2)
        for i, name in enumerate(CLASSES):
            assert result.get(f"ray/IoU_{name}", np.nan) == pytest.approx(per_class[i], nan_ok=True)


def element(golden, i, **changes):
    pred, gt, mask = triple(golden, i)
    coords = np.argwhere(pred != FREE)
    data = dict(
        pred_coords=torch.from_numpy(coords),
        pred_labels=torch.from_numpy(pred[tuple(coords.T)]).long(),
        pred_scores=torch.ones(len(coords)),
        voxel_semantics=torch.from_numpy(gt),
        mask_camera=torch.from_numpy(mask),
    )
    meta = dict(sample_idx=i, pc_range=RANGE, voxel_size=VOXEL, ray_origins=golden[f"origins/{i}"])
    return BaseDataElement(metainfo={**meta, **changes}, **data)


grids = st.integers(0, 2**32).map(
    lambda seed: np.random.default_rng(seed).integers(0, 4, (3, 4, 4, 3), dtype=np.uint8)
)


class TestOccupancy:
    @given(grids, st.booleans())
    def test_confusion_is_what_counting_gives(self, arrays, masked):
        pred, gt, mask = arrays[0], arrays[1], (arrays[2] > 1 if masked else None)
        expected = np.zeros((4, 4), dtype=int)
        for index in itertools.product(*map(range, gt.shape)):
            if mask is None or mask[index]:
                expected[gt[index], pred[index]] += 1
        np.testing.assert_array_equal(occupancy_confusion(pred, gt, mask, 4), expected)

    @given(grids)
    def test_scores_are_what_the_definition_gives(self, arrays):
        pred, gt = arrays[0], np.where(arrays[1] == 1, 0, arrays[1])  # class 1 is only predicted
        scores = occupancy_scores(occupancy_confusion(pred, gt, None, 4), empty_label=3)
        expected = []
        for label in range(4):
            both = ((pred == label) & (gt == label)).sum()
            union = ((pred == label) | (gt == label)).sum()
            expected.append(100 * both / union if union else np.nan)
        np.testing.assert_allclose(scores.per_class, expected)
        assert scores.miou == pytest.approx(np.nanmean(expected[:3]), abs=0.006)
        occupied = 100 * ((pred < 3) & (gt < 3)).sum() / ((pred < 3) | (gt < 3)).sum()
        assert scores.occupied_iou == pytest.approx(occupied, abs=0.006)

    def test_free_may_be_any_label(self):
        confusion = np.array([[50, 1], [2, 7]])
        assert occupancy_scores(confusion, 0).miou == pytest.approx(70)
        assert occupancy_scores(confusion, 1).miou == pytest.approx(94.34)

    @pytest.mark.filterwarnings("error")
    def test_nothing_to_score(self):
        scores = occupancy_scores(np.array([[0, 0], [0, 9]]), empty_label=1)
        assert np.isnan(scores.miou) and np.isnan(scores.occupied_iou)

    def test_wrong_input(self):
        a = np.zeros((2, 2, 2), np.uint8)
        with pytest.raises(ValueError, match=r"one shape, got \(2, 2, 2\), \(2, 2\)"):
            occupancy_confusion(a, a[0], None, 3)
        with pytest.raises(ValueError, match=r"prediction has labels from 3 to 3, but 3 classes"):
            occupancy_confusion(a + 3, a, None, 3)

    def test_dense_labels(self):
        grid = dense_labels(np.array([[0, 1, 2], [1, 0, 0]]), np.array([4, 5]), (2, 2, 3), 9)
        assert grid[0, 1, 2] == 4 and grid[1, 0, 0] == 5 and (grid == 9).sum() == 10
        empty = dense_labels(np.zeros((0, 3), int), np.zeros(0, int), (2, 2, 3), 9)
        assert (empty == 9).all()
        for bad in ([0, 2, 0], [-1, 0, 0]):
            with pytest.raises(ValueError, match="are outside the ground truth's grid"):
                dense_labels(np.array([bad]), np.array([1]), (2, 2, 3), 9)


class TestRayIoU:
    def test_counts_by_brute_force(self):
        rng = np.random.default_rng(0)
        shape = (2, 20, 20, 8)
        pred, gt = np.where(rng.random(shape) < 0.03, rng.integers(0, 3, shape), 3)
        args = ((-4, -4, -0.4, 4, 4, 2.8), VOXEL)
        origins = rng.uniform(-2, 2, (3, 3))
        pred, gt = pred.astype(np.uint8), gt.astype(np.uint8)
        label, depth = cast_label_rays([pred, gt], origins, *args, 3)
        scores = ray_scores(sample_ray_counts(pred, gt, origins, *args, 4, 3))
        for h, limit in enumerate((1, 2, 4)):
            ious = []
            for k in range(3):
                scored = label[1] != 3
                is_gt, is_pred = scored & (label[1] == k), scored & (label[0] == k)
                hit = is_gt & is_pred & (np.abs(depth[0] - depth[1]) < limit)
                ious.append(100 * hit.sum() / (is_gt.sum() + is_pred.sum() - hit.sum()))
            np.testing.assert_allclose(scores.per_class[h], ious)
            assert scores.per_threshold[h] == pytest.approx(np.mean(ious))
        assert scores.mean == pytest.approx(scores.per_threshold.mean())

    def test_perfect_and_empty_predictions(self):
        gt = np.full((20, 20, 8), FREE, dtype=np.uint8)
        gt[:, :, 0] = 11
        gt[12:15, 10, 1:3] = 4
        origin = np.array([[0.0, 0.0, 1.0]])
        args = ((-4, -4, -0.4, 4, 4, 2.8), VOXEL, 18, FREE)
        perfect = ray_iou([gt], [gt], [origin], *args)
        assert perfect.mean == 100 and np.isnan(perfect.per_class[0, 0])
        nothing = ray_iou([np.full_like(gt, FREE)], [gt], [origin], *args)
        assert nothing.mean == 0
        # A wall of another class in front of everything hides all true classes.
        wall = gt.copy()
        wall[9:12, 9:12] = 15
        assert ray_iou([wall], [gt], [origin], *args).mean < 50

    def test_depth_is_to_where_the_ray_leaves_the_voxel(self):
        gt = np.full((10, 10, 5), FREE, dtype=np.uint8)
        gt[6] = 4  # x from 0.4 to 0.8 m
        label, depth = cast_label_rays(
            [gt], np.array([[-1.0, 0.01, 0.0]]), (-2, -2, -1, 2, 2, 1), VOXEL, FREE
        )
        direction = ray_directions()
        straight = np.argmax(direction[:, 0])
        assert label[0, straight] == 4
        assert depth[0, straight] == pytest.approx(1.8 / direction[straight, 0], abs=1e-4)

    def test_many_samples_count_as_one_by_one(self):
        rng = np.random.default_rng(0)
        grids = np.where(rng.random((2, 20, 20, 20, 8)) < 0.03, 4, FREE).astype(np.uint8)
        origins = [rng.uniform(-2, 2, (i % 3, 3)) for i in range(20)]
        args = ((-4, -4, -0.4, 4, 4, 2.8), VOXEL, 18, FREE)
        single = [sample_ray_counts(*row, *args) for row in zip(*grids, origins, strict=True)]
        expected = ray_scores(sum(single[1:], start=single[0]))
        scores = ray_iou(*grids, origins, *args)
        np.testing.assert_array_equal(scores.per_class, expected.per_class)

    def test_many_origins_and_none(self):
        gt = np.full((10, 10, 5), FREE, dtype=np.uint8)
        args = ((-2, -2, -1, 2, 2, 1), VOXEL, FREE)
        assert cast_label_rays([gt, gt], np.zeros((3, 3)), *args)[0].shape == (2, 3 * 14040)
        assert cast_label_rays([gt, gt], np.zeros((0, 3)), *args)[0].shape == (2, 0)

    def test_wrong_input(self):
        a = np.zeros((10, 10, 5), np.uint8)
        with pytest.raises(ValueError, match="differ in shape"):
            ray_iou([a], [a[:5]], [np.zeros((1, 3))], RANGE, VOXEL, 18, FREE)
        with pytest.raises(UserError, match=r"cubic voxels, got voxel_size \(0.4, 0.4, 0.2\) m"):
            ray_iou([a], [a], [np.zeros((1, 3))], RANGE, (0.4, 0.4, 0.2), 18, FREE)
        with pytest.raises(ValueError, match="one prediction, ground truth"):
            ray_iou([a], [], [np.zeros((1, 3))], RANGE, VOXEL, 18, FREE)


class TestMetric:
    def score(self, golden, samples, metric, size=3):
        metric.dataset_meta = {"class_names": CLASSES}
        metric.process(None, [s.to_dict() for s in samples])
        return metric.evaluate(size)

    @pytest.mark.parametrize("kind", [OccupancyMetric, RayIoUMetric])
    def test_a_sample_that_comes_twice_counts_once(self, golden, kind):
        samples = [element(golden, i) for i in range(3)]
        once = self.score(golden, samples, kind())
        assert self.score(golden, [*samples, samples[0], samples[2]], kind()) == once

    def test_metric_can_be_used_again(self, golden):
        metric = OccupancyMetric()
        first = self.score(golden, [element(golden, 0)], metric, 1)
        assert self.score(golden, [element(golden, 1)], metric, 1) != first
        assert self.score(golden, [element(golden, 0)], metric, 1) == first

    def test_masks(self, golden):
        sample = element(golden, 0)
        sample.mask_lidar = ~sample.mask_camera
        pred, gt, mask = triple(golden, 0)
        for name, voxels in (("camera", mask), ("lidar", ~mask), (None, None)):
            got = self.score(golden, [sample], OccupancyMetric(mask=name), 1)
            expected = occupancy_scores(occupancy_confusion(pred, gt, voxels, 18), FREE)
            assert got["occ3d/mIoU"] == expected.miou

    def test_noise_is_ignored(self, golden):
        sample = element(golden, 0)
        noise = torch.rand(sample.voxel_semantics.shape) < 0.1
        expected = self.score(golden, [element(golden, 0)], OccupancyMetric(mask=None), 1)
        sample.voxel_semantics = torch.where(noise, 255, sample.voxel_semantics)
        got = self.score(golden, [sample], OccupancyMetric(mask=None, ignore_label=255), 1)
        pred, gt, _ = triple(golden, 0)
        exact = occupancy_scores(occupancy_confusion(pred, gt, ~noise.numpy(), 18), FREE)
        assert got["occ3d/mIoU"] == exact.miou != expected["occ3d/mIoU"]

    def test_incomplete_evaluation_is_logged(self, golden, caplog):
        logger = MMLogger.get_instance("metrics-test", log_level="INFO")
        logger.addHandler(caplog.handler)
        with caplog.at_level(logging.INFO):
            self.score(golden, [element(golden, 0)], OccupancyMetric(), 7)
        assert "1 of 7 samples scored" in caplog.text
        assert "c4" in caplog.text and "mIoU" in caplog.text

    def test_errors(self, golden):
        def process(metric, **data):
            metric.dataset_meta = {"class_names": CLASSES}
            metric.process(None, [{**element(golden, 0).to_dict(), **data}])

        def without(metric, key):
            sample = element(golden, 0).to_dict()
            del sample[key]
            metric.dataset_meta = {"class_names": CLASSES}
            metric.process(None, [sample])

        with pytest.raises(ValueError, match=r"no 'ray_origins' .* with_ray_origins=True"):
            without(RayIoUMetric(), "ray_origins")
        with pytest.raises(ValueError, match=r"no 'mask_camera' .*OccupancyMetric.mask=None."):
            without(OccupancyMetric(), "mask_camera")
        with pytest.raises(ValueError, match=r"no 'voxel_semantics' .* LoadOcc3DLabels"):
            without(OccupancyMetric(), "voxel_semantics")
        with pytest.raises(ValueError, match="are outside the ground truth's grid"):
            process(OccupancyMetric(), pred_coords=torch.full((1, 3), 300))
        evaluator = Evaluator([dict(type="RayIoUMetric")])
        with pytest.raises(UserError, match=r"remove RayIoUMetric from val_evaluator"):
            evaluator.dataset_meta = {"class_names": CLASSES, "voxel_size": (0.4, 0.4, 0.5)}
        with pytest.raises(ValueError, match="mask is 'radar'"):
            OccupancyMetric(mask="radar")
        with pytest.raises(ValueError, match="has no classes"):
            OccupancyMetric().process(None, [element(golden, 0).to_dict()])
        with pytest.raises(ValueError, match="got no samples"):
            OccupancyMetric(class_names=CLASSES).evaluate(0)


class TestCounts:
    @given(
        st.integers(1, 40),
        st.integers(1, 5),
        st.integers(0, 2**32),
    )
    def test_padded_samplers_count_each_sample_once(self, size, world, seed):
        counts = np.random.default_rng(seed).integers(0, 100, (size, 3))
        order = np.random.default_rng(seed).permutation(size)
        rounds = -(-size // world)
        padded = np.resize(order, rounds * world)
        states = []
        for rank in range(world):
            accumulator = CountAccumulator(num_edges=5)
            for index in padded[rank::world]:
                accumulator.add(int(index), counts[index])
            states.append(accumulator.state())
        total, seen = merge(states)
        np.testing.assert_array_equal(total, counts.sum(axis=0))
        assert seen == size

    def test_memory_does_not_grow_with_counts(self):
        accumulator = CountAccumulator(num_edges=4)
        for i in range(1000):
            accumulator.add(i, np.ones(3, dtype=np.int64))
        assert len(accumulator.state().edges) == 8

    def test_overlap_beyond_padding_is_refused(self):
        states = []
        for _ in range(2):
            accumulator = CountAccumulator(num_edges=1)
            for i in range(5):
                accumulator.add(i, np.ones(1, dtype=np.int64))
            states.append(accumulator.state())
        with pytest.raises(LoaderConfigError, match="evaluated by two processes"):
            merge(states)

    def test_process_without_samples(self):
        one = CountAccumulator()
        one.add(3, np.array([7]))
        total, seen = merge([CountAccumulator().state(), one.state()])
        assert (total, seen) == (7, 1)
        assert merge([CountAccumulator().state()]) == (None, 0)


def test_table_is_aligned():
    text = format_table(["class", "IoU", "n"], [["car", 3.14159, "7"], [], ["x", float("nan"), ""]])
    assert text.splitlines() == [
        "class |  IoU | n",
        "------+------+--",
        "car   | 3.14 | 7",
        "------+------+--",
        "x     |    - |  ",
    ]


class TestRayCache:
    def score(self, golden, folder):
        metric = RayIoUMetric(class_names=CLASSES, cache_dir=folder)
        metric.process(None, [element(golden, i).to_dict() for i in range(3)])
        return metric.evaluate(3)

    def test_same_scores_and_no_second_cast(self, golden, tmp_path, monkeypatch):
        plain = RayIoUMetric(class_names=CLASSES)
        plain.process(None, [element(golden, i).to_dict() for i in range(3)])
        expected = plain.evaluate(3)
        folder = str(tmp_path / "rays")
        assert self.score(golden, folder) == expected
        assert len(list((tmp_path / "rays").iterdir())) == 3

        def cast(*args):
            raise AssertionError("rays were cast again")

        monkeypatch.setattr("loaders.metrics.ray_cache.cast_label_rays", cast)
        assert self.score(golden, folder) == expected

    def test_a_full_disk_costs_the_cache_and_not_the_scores(self, golden, tmp_path, monkeypatch):
        plain = RayIoUMetric(class_names=CLASSES)
        plain.process(None, [element(golden, i).to_dict() for i in range(3)])
        tries = []

        def full(file, **arrays):
            tries.append(file.write(b"half"))
            raise OSError(errno.ENOSPC, "No space left on device")

        monkeypatch.setattr(np, "savez_compressed", full)
        assert self.score(golden, str(tmp_path / "rays")) == plain.evaluate(3)
        assert len(tries) == 1 and not list((tmp_path / "rays").iterdir())

    def test_other_content_is_cast_anew(self, golden, tmp_path):
        cache = RayCache(tmp_path)
        _, gt, _ = triple(golden, 0)
        origins = golden["origins/0"]
        label, depth = cache.cast(gt, origins, RANGE, VOXEL, FREE)
        changed = gt.copy()
        changed[100:110, 95:105, 3:8] = 15
        assert (cache.cast(changed, origins, RANGE, VOXEL, FREE)[1] != depth).any()
        assert (cache.cast(gt, origins + 1, RANGE, VOXEL, FREE)[1] != depth).any()
        assert (cache.cast(gt, origins, RANGE, VOXEL, 11)[0] != label).any()
        assert len(list(tmp_path.iterdir())) == 4
        again = cache.cast(gt, origins, RANGE, VOXEL, FREE)
        np.testing.assert_array_equal(again[0], label)
        np.testing.assert_array_equal(again[1], depth)

    @pytest.mark.parametrize("damage", [b"", b"no zip", slice(0, 5000), slice(0, -30)])
    def test_broken_files_are_replaced(self, golden, tmp_path, damage):
        _, gt, _ = triple(golden, 0)
        args = (gt, golden["origins/0"], RANGE, VOXEL, FREE)
        _, depth = RayCache(tmp_path).cast(*args)
        (path,) = tmp_path.iterdir()
        whole = path.read_bytes()
        path.write_bytes(whole[damage] if isinstance(damage, slice) else damage)
        np.testing.assert_array_equal(RayCache(tmp_path).cast(*args)[1], depth)
        assert path.read_bytes() == whole and len(list(tmp_path.iterdir())) == 1
