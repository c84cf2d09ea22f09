"""Checks of a config before training, for errors that would otherwise appear after hours."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from mmengine.config import Config

from scripts.runtime.errors import ConfigError
from scripts.runtime.settings import leaf_datasets

SPLITS = ("val", "test")


def check_evaluation(cfg: Config) -> None:
    """Check that metrics can score the data set of their split.

    Call this with the merged config, before a runner is built.

    Raises:
        ConfigError: RayIoU is configured for non-cubic voxels, or without ray origins; the message
            names the config's keys.
    """
    for split in SPLITS:
        dataloader = cfg.get(f"{split}_dataloader")
        if dataloader is None or cfg.get(f"{split}_evaluator") is None:
            continue
        types = [_type_name(metric) for metric in _metrics(cfg[f"{split}_evaluator"])]
        if "RayIoUMetric" not in types:
            continue
        where = f"{split}_dataloader.dataset"
        for path, dataset in leaf_datasets(dataloader.get("dataset"), where):
            _check_cubes(path, dataset, f"{split}_evaluator")
            _check_origins(path, dataset, f"{split}_evaluator")


def _metrics(evaluator: Any) -> list[Mapping[str, Any]]:
    if isinstance(evaluator, Mapping) and "metrics" in evaluator:  # a complete Evaluator config
        evaluator = evaluator["metrics"]
    listed = evaluator if isinstance(evaluator, (list, tuple)) else [evaluator]
    return [metric for metric in listed if isinstance(metric, Mapping)]


def _type_name(part: Mapping[str, Any]) -> str:
    kind = part.get("type")
    return kind.rpartition(".")[2] if isinstance(kind, str) else getattr(kind, "__name__", "")


def _setting(dataset: Mapping[str, Any], key: str, default_name: str) -> Any:
    """Return a data set's setting, or the default of its class."""
    if dataset.get(key) is not None:
        return dataset[key]
    from mmengine.registry import DATASETS

    kind = dataset.get("type")
    cls = DATASETS.get(kind) if isinstance(kind, str) else kind
    return getattr(cls, default_name, None)


def _check_cubes(where: str, dataset: Mapping[str, Any], evaluator: str) -> None:
    size = _setting(dataset, "voxel_size", "default_voxel_size")
    if size is None:
        return
    try:
        edges = np.asarray(size, dtype=np.float64)
    except (TypeError, ValueError):
        return  # the data set itself raises an error
    if edges.size and np.ptp(edges) > 0:
        raise ConfigError(
            f"{where}.voxel_size is {edges.tolist()}, but RayIoUMetric needs cubic voxels: make "
            f"the three edges equal, or leave RayIoUMetric out of {evaluator}"
        )


def _check_origins(where: str, dataset: Mapping[str, Any], evaluator: str) -> None:
    from mmengine.registry import DATASETS

    from loaders.datasets.occupancy_dataset import OccupancyDataset

    kind = dataset.get("type")
    cls = DATASETS.get(kind) if isinstance(kind, str) else kind
    if not (isinstance(cls, type) and issubclass(cls, OccupancyDataset)):
        return  # a data set of another kind may provide its origins differently
    if not dataset.get("with_ray_origins", False):
        raise ConfigError(
            f"{where} needs with_ray_origins=True for RayIoUMetric: set it, or leave RayIoUMetric "
            f"out of {evaluator}"
        )
