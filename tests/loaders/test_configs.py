"""The data set files of the configs, resolved, built, and run on the hand-made data set."""

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
from scripts.runtime.settings import resolve_settings

FOLDER = Path(__file__).resolve().parents[2] / "configs" / "_base_" / "datasets"
SHAPES = {
    "nuscenes_occ3d": (200, 200, 16),
    "nuscenes_occupancy": (512, 512, 40),
    "toy_occ3d": (200, 200, 16),
    "toy_occupancy": (160, 160, 20),
    "nuscenes_surroundocc": (200, 200, 16),
    "toy_surroundocc": (80, 80, 12),
    "toy_pretrain": (200, 200, 16),
}
NAMES = sorted(SHAPES)
# Image sizes of the hand-made data set.
SMALL = dict(raw_hw=(90, 160), final_hw=(32, 96), resize_range=(0.6, 0.7), num_workers=0)


def resolved(name: str, **settings: object) -> Config:
    cfg = Config.fromfile(FOLDER / f"{name}.py")
    for key, value in settings.items():
        cfg[key] = value
    resolve_settings(cfg)
    return cfg


def test_every_data_set_file_is_tested():
    assert {path.stem for path in FOLDER.glob("*.py")} == set(NAMES)


@pytest.mark.parametrize("use_lidar", [False, True])
@pytest.mark.parametrize("name", NAMES)
def test_config_builds(name, use_lidar, mini):
    cfg = resolved(name, use_lidar=use_lidar, data_root=str(mini.root))
    for part in ("train", "val", "test"):
        dataset = cfg[f"{part}_dataloader"]["dataset"]
        Compose(dataset["pipeline"])
        built = DATASETS.build({**dataset, "lazy_init": True})
        assert built.test_mode == (part != "train")
        scores_rays = any(metric["type"] == "RayIoUMetric" for metric in cfg.val_evaluator)
        assert built.with_ray_origins == (scores_rays and part != "train")
        low, high = np.array(built.pc_range[:3]), np.array(built.pc_range[3:])
        assert tuple(np.round((high - low) / built.voxel_size)) == SHAPES[name]
        assert list(built.class_names) == cfg.class_names
        steps = [step["type"] for step in dataset["pipeline"]]
        assert ("LoadLidarSweeps" in steps) == ("FilterPoints" in steps) == use_lidar
        flips = next(step for step in dataset["pipeline"] if step["type"] == "RandomFlipBEV")
        is_demo = name.startswith("toy") and name != "toy_pretrain"
        assert flips["bev_flip_prob"] == (0.0 if is_demo else 0.5)
        version = "_mini" if is_demo else ""
        split = "train" if part == "train" else "val"
        assert Path(built.ann_file).name == f"nuscenes_infos_{split}{version}_sweep.pkl"
        Evaluator(cfg["val_evaluator"])
    assert "batch_size" not in cfg  # the total is the run's business


def test_nuscenes_config_has_the_published_values():
    cfg = resolved("nuscenes_occ3d")
    draw, load = cfg.train_dataloader.dataset.pipeline[:2]
    assert (draw.raw_hw, draw.final_hw) == (load.raw_hw, (256, 704)) == ((900, 1600), (256, 704))
    assert draw.resize_range == (0.38, 0.55)
    assert cfg.train_dataloader.dataset.num_frames == 8
    assert load.image_mode == "exact"
    assert len(cfg.class_names) == 17
    assert cfg.class_names[4] == "car" and cfg.class_names[11] == "driveable_surface"


@pytest.mark.parametrize("use_lidar", [False, True])
@pytest.mark.parametrize("name", [name for name in NAMES if name.startswith("toy")])
def test_toy_config_runs_through_the_data_loader(name, use_lidar, mini):
    root = dict(data_root=str(mini.root), version="v1.0-mini")
    cfg = resolved(name, use_lidar=use_lidar, **root, **SMALL)
    for part in ("train", "val"):
        loader = cfg[f"{part}_dataloader"]
        loader["batch_size"] = 2
        loader.pop("persistent_workers", None)
        batches = list(Runner.build_dataloader(loader, seed=0))
        assert sum(len(batch["data_samples"]) for batch in batches) == (6 if part == "train" else 3)
        inputs, sample = batches[0]["inputs"], batches[0]["data_samples"][0]
        assert len(inputs["img"]) == 2
        assert inputs["img"][0].shape == (cfg.num_frames * 6, 3, 32, 96)
        assert ("points" in inputs) == use_lidar
        assert ("ray_origins" in sample) == (part == "val")
        is_occ3d = name in ("toy_occ3d", "toy_pretrain")
        assert ("mask_valid" in sample) == (not is_occ3d) != ("mask_camera" in sample)


def test_toy_config_with_workers(mini):
    small = {**SMALL, "num_workers": 1}
    loader = resolved("toy_occ3d", data_root=str(mini.root), **small)["train_dataloader"]
    loader["batch_size"] = 2
    assert loader["num_workers"] > 0
    assert len(list(Runner.build_dataloader(loader, seed=0))) == 3


def test_openoccupancy_config_has_the_published_values():
    cfg = resolved("nuscenes_occupancy")
    assert cfg.pc_range == [-51.2, -51.2, -5.0, 51.2, 51.2, 3.0]
    assert cfg.voxel_size == [0.2, 0.2, 0.2]
    assert (cfg.class_names[0], cfg.class_names[10]) == ("barrier", "driveable_surface")
    assert [metric["mask"] for metric in cfg.val_evaluator] == ["valid"]
