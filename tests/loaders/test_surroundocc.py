"""SurroundOcc: rows (x, y, z, class) in files named after LiDAR files; scores by hand."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from mmengine.evaluator import Evaluator
from mmengine.registry import DATASETS

import loaders.register  # noqa: F401 - enters the parts into the registries
from loaders.errors import LoaderConfigError, WrongShapeError
from loaders.sample import UNKNOWN_LABEL
from scripts.runtime.config import load_config

ROOT = Path(__file__).resolve().parents[2]
CONFIG = ROOT / "configs/opusv2_nusc-surroundocc/opusv2-t_r50_704x256_8f_nusc-surroundocc_24e.py"
FREE = 16
# x, y, z, class of the file: two barriers, a car, vegetation, and noise.
ROWS = np.array([[0, 1, 2, 1], [199, 0, 15, 1], [10, 20, 5, 4], [11, 20, 5, 16], [12, 20, 5, 0]])


def surround_config(root):
    options = {
        "data_root": str(root),
        "version": "v1.0-mini",
        "val_dataloader.dataset.ann_file": str(root / "nuscenes_infos_val_mini_sweep.pkl"),
        "raw_hw": [90, 160],
        "final_hw": [64, 160],
        "num_frames": 1,
    }
    return load_config(CONFIG, options)


@pytest.fixture
def root(mini, tmp_path):
    """Return the mini data set with a SurroundOcc file per validation key frame."""
    for path in mini.root.iterdir():
        if path.name != "surroundocc":
            (tmp_path / path.name).symlink_to(path)
    (tmp_path / "surroundocc").mkdir()
    cfg = surround_config(tmp_path)
    dataset = DATASETS.build({**cfg.val_dataloader.dataset, "pipeline": []})
    for i in range(len(dataset)):
        name = Path(dataset.get_sample(i).lidar_file).name
        assert name.endswith(".pcd.bin")
        np.save(tmp_path / "surroundocc" / f"{name}.npy", ROWS)
    return tmp_path


def test_labels_are_those_of_the_rows(root):
    dataset = DATASETS.build(surround_config(root).val_dataloader.dataset)
    sample = dataset[0]["data_samples"]
    grid = sample.voxel_semantics.numpy()
    assert grid.shape == (200, 200, 16)
    expected = np.full((200, 200, 16), FREE)
    expected[0, 1, 2] = expected[199, 0, 15] = 0
    expected[10, 20, 5], expected[11, 20, 5] = 3, 15
    expected[12, 20, 5] = UNKNOWN_LABEL
    np.testing.assert_array_equal(grid, expected)
    np.testing.assert_array_equal(np.argwhere(~sample.mask_valid.numpy()), [[12, 20, 5]])
    # The grid is in the lidar frame.
    np.testing.assert_allclose(
        np.linalg.inv(sample.ego2occ.numpy().astype(float)), sample.lidar2ego, atol=1e-6
    )


def test_scores_by_hand(root):
    """A sample has two barriers, one found; a car, predicted as truck; vegetation, found.

    Of two invented voxels one is noise and does not count.
    """
    cfg = surround_config(root)
    dataset = DATASETS.build(cfg.val_dataloader.dataset)
    evaluator = Evaluator([dict(metric) for metric in cfg.val_evaluator])
    evaluator.dataset_meta = dataset.metainfo
    coords = np.array([[0, 1, 2], [10, 20, 5], [11, 20, 5], [12, 20, 5], [100, 100, 8]])
    labels = np.array([0, 9, 15, 15, 15])
    for i in range(len(dataset)):
        sample = dataset[i]["data_samples"].to_dict()
        evaluator.process([{**sample, "pred_coords": coords, "pred_labels": labels}])
    scores = evaluator.evaluate(len(dataset))
    # barrier 1/2, car 0/1, truck 0/1 (only predicted), vegetation 1/2.
    assert scores["surroundocc/mIoU"] == pytest.approx((50 + 0 + 0 + 50) / 4)
    # Occupied in both: 3 (barrier, car, vegetation); in one: a barrier missed, one invented.
    assert scores["surroundocc/IoU"] == pytest.approx(60)


def test_wrong_files_and_options(root):
    cfg = surround_config(root)
    dataset = DATASETS.build(cfg.val_dataloader.dataset)
    path = next((root / "surroundocc").glob("*.npy"))
    for other in (root / "surroundocc").glob("*.npy"):
        np.save(other, np.array([[0, 0, 16, 1]]))
    with pytest.raises(WrongShapeError, match=f"{path.parent.name}/.*outside its grid"):
        dataset[0]
    step = dict(cfg.val_dataloader.dataset.pipeline[2])
    for change, message in (
        (dict(column_order="xyy"), "column_order is 'xyy', use 'zyx' or 'xyz'"),
        (dict(label_file="{lidar}.npy"), "label_file is '{lidar}.npy': use the fields"),
    ):
        with pytest.raises(LoaderConfigError, match=message):
            DATASETS.build({**cfg.val_dataloader.dataset, "pipeline": [{**step, **change}]})
