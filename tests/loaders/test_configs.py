"""The shipped data set configs, built; the toy one run on the hand-made data set."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from mmengine.config import Config
from mmengine.dataset import Compose
from mmengine.evaluator import Evaluator
from mmengine.registry import DATASETS
from mmengine.runner import Runner

import loaders.register  # noqa: F401 - enters the parts into the registries

FOLDER = Path(__file__).resolve().parents[2] / "configs" / "_base_" / "datasets"


NAMES = sorted(path.stem for path in FOLDER.glob("*.py"))
SHAPES = {
    "nuscenes_occ3d": (200, 200, 16),
    "nuscenes_occupancy": (512, 512, 40),
    "toy_occ3d": (200, 200, 16),
    "toy_occupancy": (160, 160, 20),
}


def test_every_config_has_a_known_grid():
    kinds = {next(kind for kind in SHAPES if name.startswith(kind)) for name in NAMES}
    assert kinds == set(SHAPES)


@pytest.mark.parametrize("name", NAMES)
def test_config_builds(name, mini):
    cfg = Config.fromfile(FOLDER / f"{name}.py")
    shape = next(SHAPES[kind] for kind in SHAPES if name.startswith(kind))
    for part in ("train", "val", "test"):
        dataset = cfg[f"{part}_dataloader"]["dataset"]
        Compose(dataset["pipeline"])
        built = DATASETS.build({**dataset, "data_root": str(mini.root), "lazy_init": True})
        assert built.test_mode == (part != "train")
        scores_rays = any(metric["type"] == "RayIoUMetric" for metric in cfg.val_evaluator)
        assert built.with_ray_origins == (scores_rays and part != "train")
        low, high = np.array(built.pc_range[:3]), np.array(built.pc_range[3:])
        assert tuple(np.round((high - low) / built.voxel_size)) == shape
        assert list(built.class_names) == cfg.class_names
        assert len(cfg.class_names) == cfg.empty_label
        steps = [step["type"] for step in dataset["pipeline"]]
        flips = part == "train" and "noflip" not in name and not name.startswith("toy")
        assert ("RandomFlipBEV" in steps) == flips
        assert ("LoadLidarSweeps" in steps) == ("lidar" in name) == built.use_lidar
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


@pytest.mark.parametrize("name", [name for name in NAMES if name.startswith("toy")])
def test_toy_config_runs_through_the_data_loader(name, mini):
    cfg = Config.fromfile(FOLDER / f"{name}.py")
    for part in ("train", "val"):
        loader = cfg[f"{part}_dataloader"]
        loader["batch_size"] = 2
        loader["num_workers"] = 0
        loader.pop("persistent_workers", None)
        loader["dataset"]["data_root"] = str(mini.root)
        draw, load = loader["dataset"]["pipeline"][:2]
        for step in (draw, load):
            step["raw_hw"] = (90, 160)
        draw["final_hw"] = (32, 96)
        batches = list(Runner.build_dataloader(loader, seed=0))
        assert sum(len(batch["data_samples"]) for batch in batches) == (6 if part == "train" else 3)
        inputs, sample = batches[0]["inputs"], batches[0]["data_samples"][0]
        assert len(inputs["img"]) == 2
        assert inputs["img"][0].shape == (cfg.num_frames * 6, 3, 32, 96)
        assert ("points" in inputs) == ("lidar" in name)
        assert ("ray_origins" in sample) == (part == "val")
        assert ("mask_valid" in sample) == ("occupancy" in name) != ("mask_camera" in sample)


def test_toy_config_with_workers(mini):
    loader = Config.fromfile(FOLDER / "toy_occ3d.py")["train_dataloader"]
    loader["batch_size"] = 2
    loader["dataset"]["data_root"] = str(mini.root)
    draw, load = loader["dataset"]["pipeline"][:2]
    for step in (draw, load):
        step["raw_hw"] = (90, 160)
    draw["final_hw"] = (32, 96)
    assert loader["num_workers"] > 0
    assert len(list(Runner.build_dataloader(loader, seed=0))) == 3


def test_openoccupancy_config_has_the_published_values():
    cfg = Config.fromfile(FOLDER / "nuscenes_occupancy.py")
    assert cfg.pc_range == [-51.2, -51.2, -5.0, 51.2, 51.2, 3.0]
    assert cfg.voxel_size == [0.2, 0.2, 0.2]
    assert (cfg.class_names[0], cfg.class_names[10]) == ("barrier", "driveable_surface")
    assert [metric["mask"] for metric in cfg.val_evaluator] == ["valid"]
