"""Example of a custom data set: load, check, train for a few steps and score."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from mmengine.registry import DATASETS

import loaders.register  # noqa: F401 - enters the parts into the registries
import train
import val
import visualize
from examples.courtyard.make_data import COLOURS, GROUND, make_data
from loaders.info_io import load_infos, save_infos
from scripts.data_checks import checker as check_data
from scripts.runtime.config import load_config

CONFIG = Path(__file__).resolve().parents[2] / "examples" / "courtyard" / "config.py"


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("courtyard")
    make_data(root, scenes=2, frames=3)
    return root


def test_ground_in_the_images_is_ground_in_the_labels(root):
    """Project with the loader's matrices, in history frames, with flips of images and grid."""
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
                # The point of the pixel's ray on the ground, z = 0.
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
    # Without labels the same weights predict and draw, and nothing is scored.
    (root / "labels").rename(root / "hidden")
    try:
        draw = ["--config", str(CONFIG), "--weights", weights, "--vis-input", "--num", "1"]
        for kind in ("png", "html"):
            folder = tmp_path / kind
            words = [*draw, "--format", kind, "--out", str(folder), *options]
            assert visualize.main(words) == 0
            assert list(folder.glob(f"*.{kind}")) and not list(folder.glob(".*"))
        folders = [str(tmp_path / "dense"), str(tmp_path / "sparse")]
        save = ["--submission", folders[0], "--save-predictions", folders[1], "--out", str(out)]
        assert val.main([*common, "--weights", weights, *save, *options]) == 0
        for folder in folders:
            assert len(list(Path(folder).glob("*.npz"))) == 3
        metrics = json.loads(out.read_text())["metrics"]
        assert metrics == {"submission_files": 3, "saved_predictions": 3}
        assert val.main([*common, "--weights", weights, *options]) == 2
    finally:
        (root / "hidden").rename(root / "labels")


@pytest.mark.parametrize("kind", ["png", "html", "rrd", "gif"])
def test_classes_of_any_name_have_colours(root, tmp_path, kind):
    """Every format has colours; a failed write leaves no file."""
    words = ["--config", str(CONFIG), "--format", kind, "--vis-gt", "--index", "0"]
    words += ["--out", str(tmp_path), "--cfg-options", f"data_root={root}"]
    assert visualize.main(words) == 0
    assert [path.suffix for path in tmp_path.iterdir() if path.stem != "overview"] == [f".{kind}"]


def test_two_cameras_of_which_one_sees_no_part_of_the_grid(root, tmp_path):
    """Train and score with one camera along the street and one at the sky."""
    for split in ("train", "val"):
        infos = load_infos(root / f"infos_{split}.pkl").infos
        for info in infos:
            front = info["cams"]["FRONT"]
            rotation = front["sensor2global_rotation"]
            # Its z axis becomes the axis that pointed up (row vectors: rows are camera axes).
            up = np.stack([rotation[0], rotation[2], -rotation[1]])
            info["cams"] = {"FRONT": front, "UP": {**front, "sensor2global_rotation": up}}
            assert np.allclose(up[2], [0, 0, 1]) and np.isclose(np.linalg.det(up), 1)
        save_infos(tmp_path / f"{split}.pkl", infos, {"version": "courtyard"})
    options = [f"data_root={root}", "cameras=['FRONT','UP']", "max_epochs=1"]
    options += [f"{s}_dataloader.dataset.ann_file={tmp_path}/{s}.pkl" for s in ("train", "val")]
    words = ["--config", str(CONFIG), "--work-dir", str(tmp_path / "run"), "--cfg-options"]
    assert train.main([*words, *options]) == 0
    weights = torch.load(tmp_path / "run" / "epoch_1.pth", weights_only=False)["state_dict"]
    assert all(torch.isfinite(value).all() for value in weights.values())
