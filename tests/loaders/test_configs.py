"""The shipped data set configs, built; the toy one run on the hand-made data set."""

from __future__ import annotations

from pathlib import Path

import pytest
from mmengine.config import Config
from mmengine.dataset import Compose
from mmengine.evaluator import Evaluator
from mmengine.registry import DATASETS
from mmengine.runner import Runner

import loaders.register  # noqa: F401 - enters the parts into the registries

FOLDER = Path(__file__).resolve().parents[2] / "configs" / "_base_" / "datasets"


@pytest.mark.parametrize("name", ["nuscenes_occ3d", "toy_occ3d"])
def test_config_builds(name, mini):
    cfg = Config.fromfile(FOLDER / f"{name}.py")
    for part in ("train", "val", "test"):
        dataset = cfg[f"{part}_dataloader"]["dataset"]
        Compose(dataset["pipeline"])
        built = DATASETS.build({**dataset, "data_root": str(mini.root), "lazy_init": True})
        assert built.test_mode == (part != "train")
        assert built.with_ray_origins == (part != "train")
        shape = [
            round((high - low) / size)
            for low, high, size in zip(
                built.pc_range[:3], built.pc_range[3:], built.voxel_size, strict=True
            )
        ]
        assert shape == [200, 200, 16]
        Evaluator(cfg["val_evaluator"])
    assert "batch_size" not in cfg  # the total is the run's business


def test_nuscenes_config_has_the_published_values():
    cfg = Config.fromfile(FOLDER / "nuscenes_occ3d.py")
    assert (cfg.raw_hw, cfg.final_hw) == ((900, 1600), (256, 704))
    assert cfg.resize_range == (0.38, 0.55)
    assert cfg.num_frames == 8
    assert cfg.image_mode == "exact"
    assert len(cfg.class_names) == cfg.empty_label == 17
    assert cfg.class_names[4] == "car" and cfg.class_names[11] == "driveable_surface"


def test_toy_config_runs_through_the_data_loader(mini):
    cfg = Config.fromfile(FOLDER / "toy_occ3d.py")
    for part in ("train", "val"):
        loader = cfg[f"{part}_dataloader"]
        loader["batch_size"] = 2
        loader["dataset"]["data_root"] = str(mini.root)
        draw, load = loader["dataset"]["pipeline"][:2]
        for step in (draw, load):
            step["raw_hw"] = (90, 160)
        draw["final_hw"] = (32, 96)
        batches = list(Runner.build_dataloader(loader, seed=0))
        assert sum(len(batch["data_samples"]) for batch in batches) == (6 if part == "train" else 3)
        image = batches[0]["inputs"]["img"]
        assert len(image) == 2 and image[0].shape == (cfg.num_frames * 6, 3, 32, 96)
        assert ("ray_origins" in batches[0]["data_samples"][0]) == (part == "val")
