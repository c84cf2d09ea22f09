"""Checks before the first step of a run."""

from __future__ import annotations

from typing import Any

import pytest
from mmengine.config import Config
from mmengine.registry import init_default_scope

from loaders import register  # noqa: F401 - registers the data sets
from scripts.runtime.errors import ConfigError
from scripts.runtime.preflight import check_evaluation


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
