"""The worked example of a custom data set: loaded, checked, trained for a few steps and scored."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from mmengine.registry import DATASETS

import loaders.register  # noqa: F401 - enters the parts into the registries
import train
import val
from examples.courtyard.make_data import COLOURS, GROUND, make_data
from scripts.data_checks import checker as check_data
from scripts.runtime.config import load_config

CONFIG = Path(__file__).resolve().parents[2] / "examples" / "courtyard" / "config.py"


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("courtyard")
    make_data(root, scenes=2, frames=3)
    return root


def test_ground_in_the_images_is_ground_in_the_labels(root):
    """Through the loader's matrices, in the history frames and with flips of images and grid."""
    cfg = load_config(CONFIG, {"data_root": str(root)})
    dataset = DATASETS.build(cfg.train_dataloader.dataset)
    ground = COLOURS[1 + GROUND][::-1]  # BGR
    checked, flips = 0, set()
    for epoch in range(3):
        dataset.set_epoch(epoch)
        for item in (dataset[i] for i in range(len(dataset))):
            sample, images = item["data_samples"], item["inputs"]["img"]
            assert images.shape == (8, 3, 64, 96)
            flips.add(tuple(np.sign(np.diag(sample.ego2occ))[:2]))
            low = np.array(sample.pc_range[:3])
            for image, ego2img in zip(images.numpy(), sample.ego2img.double().numpy(), strict=True):
                v, u = np.nonzero((image == ground[:, None, None]).all(0))
                # Of all points that a pixel shows, the one on the ground: z = 0, just below it.
                camera = -np.linalg.solve(ego2img[:3, :3], ego2img[:3, 3])
                rays = np.linalg.solve(
                    ego2img[:3, :3], np.stack([u + 0.5, v + 0.5, np.ones(len(u))])
                )
                points = camera[:, None] - rays * ((camera[2] + 0.05) / rays[2])
                in_occ = sample.ego2occ[:3, :3].double().numpy() @ points
                in_occ += sample.ego2occ[:3, 3:].double().numpy()
                voxel = np.floor((in_occ - low[:, None]) / 0.6).astype(int)
                inside = ((voxel >= 0) & (voxel < np.array([[40], [30], [5]]))).all(0)
                labels = sample.voxel_semantics.numpy()[tuple(voxel[:, inside])]
                assert (labels == GROUND).all()
                checked += inside.sum()
    assert checked > 10_000 and len(flips) == 4


def test_nothing_is_wrong_with_the_data(root, capsys):
    arguments = [str(CONFIG), "--full", "--workers", "0", "--cfg-options", f"data_root={root}"]
    assert check_data.main(arguments) == 0
    # Four images and a label file per frame.
    assert "train: opened 30 files of 6 of 6 samples" in capsys.readouterr().out
    (root / "labels" / "train0-001.npy").rename(root / "hidden.npy")
    try:
        assert check_data.main(arguments) == 1
        assert "labels | missing" in capsys.readouterr().out
    finally:
        (root / "hidden.npy").rename(root / "labels" / "train0-001.npy")


def test_trains_and_scores(root, tmp_path):
    options = ["--cfg-options", f"data_root={root}", "max_epochs=1"]
    common = ["--config", str(CONFIG), "--work-dir", str(tmp_path)]
    assert train.main([*common, *options]) == 0
    weights = (tmp_path / "last_checkpoint").read_text()
    out = tmp_path / "scores.json"
    assert val.main([*common, "--weights", weights, "--out", str(out), *options]) == 0
    metrics = json.loads(out.read_text())["metrics"]
    assert 0 <= metrics["courtyard/mIoU"] <= 100
    names = {name for name in metrics if name.startswith("courtyard/IoU_")}
    assert names == {f"courtyard/IoU_{name}" for name in ("ground", "wall", "crate", "person")}
    assert "ray/RayIoU" in metrics
