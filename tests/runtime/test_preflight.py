"""What a run checks before its first step."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from mmengine.config import Config
from mmengine.registry import init_default_scope

from loaders import register  # noqa: F401 - registers the data sets
from scripts.runtime.config import load_config
from scripts.runtime.errors import ConfigError
from scripts.runtime.preflight import check_evaluation, check_types


def config(evaluator: Any, **dataset: Any) -> Config:
    init_default_scope("mmengine")
    leaf = {"type": "NuScenesOcc3DDataset", "with_ray_origins": True, **dataset}
    return Config(dict(val_dataloader=dict(dataset=leaf), val_evaluator=evaluator))


RAYS = [dict(type="OccupancyMetric"), dict(type="RayIoUMetric")]


def test_voxels_that_are_no_cubes_are_refused_before_training() -> None:
    cfg = config(RAYS, voxel_size=[0.4, 0.4, 0.8])
    with pytest.raises(ConfigError, match=r"val_dataloader\.dataset\.voxel_size.*cubic voxels"):
        check_evaluation(cfg)
    check_evaluation(config(RAYS, voxel_size=[0.8, 0.8, 0.8]))
    check_evaluation(config(RAYS))  # the data set's own size
    check_evaluation(config([dict(type="OccupancyMetric")], voxel_size=[0.4, 0.4, 0.8]))
    check_evaluation(Config(dict(model=dict(type="X"))))


def test_inside_wrappers_and_in_the_test_split() -> None:
    good = config(RAYS).val_dataloader.dataset
    bad = dict(good, voxel_size=(0.5, 0.4, 0.4))
    joined = dict(type="ConcatDataset", datasets=[good, dict(type="RepeatDataset", dataset=bad)])
    cfg = Config(
        dict(test_dataloader=dict(dataset=joined), test_evaluator=dict(type="RayIoUMetric"))
    )
    with pytest.raises(
        ConfigError, match=r"test_dataloader\.dataset\.datasets\[1\]\.dataset\.voxel"
    ):
        check_evaluation(cfg)


def test_rays_need_their_origins() -> None:
    with pytest.raises(ConfigError, match=r"val_dataloader\.dataset needs with_ray_origins=True"):
        check_evaluation(config(dict(metrics=RAYS), with_ray_origins=False))


ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize(
    "path", sorted((ROOT / "configs").glob("*/opus*.py")), ids=lambda p: p.stem
)
def test_all_configs_pass(path: Path) -> None:
    cfg = load_config(path)
    init_default_scope("mmengine")
    check_types(cfg)
    check_evaluation(cfg)


@pytest.mark.parametrize(
    ("key", "value", "takes"),
    [
        ("train_dataloader.dataset.num_frames", "abc", "int"),
        ("train_dataloader.dataset.num_frames", True, "int"),
        ("train_dataloader.dataset.on_error", "ignore", "Literal"),
        ("train_dataloader.dataset.pipeline.0.final_hw", [96], "tuple[int, int]"),
        ("model.pts_bbox_head.num_query", "many", "int"),
        ("model.pts_bbox_head.pc_range", 3, "Sequence[float]"),
        ("test_evaluator.0.mask", "radar", "Literal"),
    ],
)
def test_a_value_of_another_type_is_named(key: str, value: Any, takes: str) -> None:
    cfg = load_config(ROOT / "configs/toy/opusv2-nano_toy.py")
    cfg.merge_from_dict({key: value})
    with pytest.raises(ConfigError) as caught:
        check_types(cfg)
    assert f".{key.rpartition('.')[2]} is {value!r}, but" in str(caught.value)
    assert takes in str(caught.value)
