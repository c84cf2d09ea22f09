from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from mmengine.dataset import BaseDataset
from mmengine.registry import DATASETS

from loaders.sample import OccSample
from scripts.scoring import prior as evaluate_prior

SHAPE = (6, 5, 4)
CLASSES = ("road", "wall")
FREE = len(CLASSES)


@DATASETS.register_module()
class FakeOccDataset(BaseDataset):
    """Data set of seeded labels: a constant road and a wall that comes and goes."""

    def __init__(self, pipeline: list, seed: int, num_samples: int = 5, test_mode: bool = False):
        assert [step["type"] for step in pipeline] == ["LoadOcc3DLabels"], "images were loaded"
        assert test_mode
        self.seed, self.num_samples = seed, num_samples
        super().__init__(metainfo=dict(class_names=CLASSES))

    def load_data_list(self) -> list[dict]:
        return [{} for _ in range(self.num_samples)]

    def prepare_data(self, idx: int) -> OccSample:
        rng = np.random.default_rng([self.seed, idx])
        labels = np.full(SHAPE, FREE, dtype=np.uint8)
        labels[:, :, 0] = 0
        labels[rng.integers(SHAPE[0]), :, 1:3] = 1
        return OccSample(
            sample_idx=idx,
            sample_token=str(idx),
            scene_name="s",
            scene_token="s",
            lidar_token="l",
            data_root="",
            img_paths=[],
            img_timestamps=np.zeros(0, np.int64),
            ego2img=np.zeros((0, 4, 4)),
            pc_range=(0.0, 0.0, 0.0, 6.0, 5.0, 4.0),
            voxel_size=(1.0, 1.0, 1.0),
            class_names=CLASSES,
            ray_origins=np.array([[3.0, 2.5, 2.5]]),
            voxel_semantics=labels,
            mask_camera=rng.random(SHAPE) < 0.5,
            mask_lidar=np.ones(SHAPE, dtype=bool),
        )


def test_voxels_of_unknown_state_are_not_counted() -> None:
    samples = [dataset()[index] for index in range(3)]
    plain = evaluate_prior.count_labels(samples)  # type: ignore[arg-type]
    assert [count.sum(axis=0).max() for count in plain] == [3, 3]
    hidden = np.random.default_rng(0).random((3, *SHAPE)) < 0.4
    hidden[:, 0, 0, 0] = True  # never known
    for sample, unknown in zip(samples, hidden, strict=True):
        sample.voxel_semantics[unknown] = 255
    for count, scored in zip(
        evaluate_prior.count_labels(samples),  # type: ignore[arg-type]
        (np.ones((3, *SHAPE), bool), np.stack([sample.mask_camera for sample in samples])),
        strict=True,
    ):
        labels = np.stack([sample.voxel_semantics for sample in samples])
        for label in range(FREE + 1):
            np.testing.assert_array_equal(count[label], ((labels == label) & scored).sum(axis=0))
    counts = evaluate_prior.count_labels(samples)  # type: ignore[arg-type]
    for grid in evaluate_prior.prior_grids(*counts).values():
        assert grid[0, 0, 0] == FREE


def dataset(seed: int = 0, num_samples: int = 5) -> FakeOccDataset:
    return FakeOccDataset([dict(type="LoadOcc3DLabels")], seed, num_samples, test_mode=True)


def test_counts_agree_with_a_loop() -> None:
    samples = dataset()
    everywhere, visible = evaluate_prior.count_labels(samples)
    expected = np.zeros((2, FREE + 1, *SHAPE), dtype=int)
    for index in range(len(samples)):
        sample = samples[index]
        for voxel in np.ndindex(*SHAPE):
            label = sample.voxel_semantics[voxel]
            expected[(0, label, *voxel)] += 1
            expected[(1, label, *voxel)] += sample.mask_camera[voxel]
    np.testing.assert_array_equal(everywhere, expected[0])
    np.testing.assert_array_equal(visible, expected[1])


@pytest.mark.parametrize("with_mask", [True, False])
def test_without_camera_masks_all_voxels_except_noise_count(with_mask: bool) -> None:
    """OpenOccupancy has no camera masks; without any mask every voxel counts."""

    class Unseen(FakeOccDataset):
        def prepare_data(self, idx: int) -> OccSample:
            sample = super().prepare_data(idx)
            seen, sample.mask_camera = sample.mask_camera, None
            sample.mask_valid = seen if with_mask else None
            return sample

    counts = evaluate_prior.count_labels(dataset())
    unseen = Unseen([dict(type="LoadOcc3DLabels")], 0, test_mode=True)
    got = evaluate_prior.count_labels(unseen)
    np.testing.assert_array_equal(got[0], counts[0])
    np.testing.assert_array_equal(got[1], counts[1] if with_mask else counts[0])


def test_most_frequent_label_and_its_fallback() -> None:
    everywhere = np.zeros((3, 1, 1, 3), dtype=np.int32)
    everywhere[:, 0, 0] = [[3, 1, 0], [1, 3, 1], [1, 1, 4]]
    visible = np.zeros_like(everywhere)
    visible[2, 0, 0, 0] = 1  # a camera saw it free once; it never saw the other two
    grids = evaluate_prior.prior_grids(everywhere, visible)
    assert grids["all"].ravel().tolist() == [0, 1, 2]
    assert grids["visible"].ravel().tolist() == [2, 1, 2]


def test_sparse_form_keeps_every_occupied_voxel() -> None:
    grid = dataset()[0].voxel_semantics
    prediction = evaluate_prior.as_prediction(grid, FREE)
    rebuilt = np.full(SHAPE, FREE, dtype=np.uint8)
    rebuilt[tuple(prediction["pred_coords"].T)] = prediction["pred_labels"]
    np.testing.assert_array_equal(rebuilt, grid)


CONFIG = """
default_scope = 'mmengine'
pipeline = [dict(type='LoadMultiViewImages'), dict(type='LoadOcc3DLabels', label_cache_mb=9)]
train_dataloader = dict(dataset=dict(type='FakeOccDataset', seed={train}, pipeline=pipeline))
val_dataloader = dict(dataset=dict(type='FakeOccDataset', seed={val}, pipeline=pipeline))
val_evaluator = [dict(type='OccupancyMetric', mask='camera'), dict(type='RayIoUMetric')]
"""


def run_prior(folder: Path, train: int, val: int) -> dict:
    (folder / "prior.py").write_text(CONFIG.format(train=train, val=val))
    out = folder / "prior.json"
    code = evaluate_prior.main(["--config", str(folder / "prior.py"), "--out", str(out)])
    assert code == 0
    return json.loads(out.read_text())


def test_scores_of_both_variants_and_the_stronger(tmp_path: Path) -> None:
    import loaders.register  # noqa: F401 - the config names its metrics

    report = run_prior(tmp_path, train=0, val=1)
    metrics, variants = report["metrics"], report["variants"]
    for key in ("occ3d/mIoU", "ray/RayIoU"):
        assert metrics[key] == max(variants["all"][key], variants["visible"][key])
    # The road is always where it was; the wall is not.
    assert metrics["occ3d/IoU_road"] == pytest.approx(100.0)
    assert metrics["occ3d/IoU_wall"] < 60.0
    assert 0.0 < metrics["ray/RayIoU"] < 100.0
