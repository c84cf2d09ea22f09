"""Scoring of predictions without a model, sample by sample, in several processes."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from typing import Any

import torch
from mmengine.config import Config
from mmengine.registry import DATASETS, METRICS
from tqdm import tqdm

from loaders.datasets.wrappers import map_leaf_configs
from loaders.metrics.base import CountingMetric
from loaders.metrics.counts import CountState
from loaders.sample import OccSample
from loaders.transforms.cache import without_caches
from loaders.transforms.labels import loads_labels
from scripts.runtime.building import named_config_keys
from scripts.runtime.errors import ConfigError

# Maps a sample with labels to `pred_coords` [n, 3] and `pred_labels` [n].
Predictor = Callable[[OccSample], Mapping[str, Any]]
# For each predictor, the counts of all metrics.
States = dict[str, list[CountState]]


def labels_only(dataset_cfg: Mapping[str, Any]) -> dict[str, Any]:
    """Return the config of a data set, including wrappers, with a pipeline that only loads labels.

    Raises:
        ConfigError: The pipeline loads no labels.
    """
    return map_leaf_configs(dataset_cfg, _labels_only)


def _labels_only(cfg: dict[str, Any]) -> dict[str, Any]:
    loading = [step for step in cfg["pipeline"] if loads_labels(str(step["type"]))]
    if not loading:
        raise ConfigError(f"the pipeline of {cfg['type']} loads no labels: nothing to count")
    # Every sample is read once.
    return {**cfg, "pipeline": without_caches(loading), "test_mode": True}


class Scorer:
    """Scorer of predictions on a split with the metrics of its config.

    Args:
        dataset_cfg: Config of the data set.
        evaluator_cfg: Config of the metrics, which must be this project's.

    Raises:
        ConfigError: A metric cannot be computed without running a model.
    """

    def __init__(self, dataset_cfg: Mapping[str, Any], evaluator_cfg: Any) -> None:
        self.dataset = DATASETS.build(labels_only(dataset_cfg))
        configs = evaluator_cfg if isinstance(evaluator_cfg, list) else [evaluator_cfg]
        self._metric_cfgs = [dict(cfg) for cfg in configs]
        for metric in self._metrics():
            if not isinstance(metric, CountingMetric):
                raise ConfigError(
                    f"the metric {type(metric).__name__} cannot score predictions without a model: "
                    "leave it out of the evaluator"
                )

    def score(
        self, predictors: Mapping[str, Predictor], workers: int = 0
    ) -> dict[str, dict[str, float]]:
        """Return the scores of each predictor by name.

        Args:
            predictors: Predictors by name; they share the samples, which are read once.
            workers: Number of processes; 0 runs in this process. The scores do not depend on it.
        """
        parts = self._count_all(predictors, max(1, workers))
        scores: dict[str, dict[str, float]] = {}
        for name in predictors:
            scores[name] = {}
            for i, metric in enumerate(self._metrics()):
                states = [part[name][i] for part in parts]
                scores[name].update(metric.evaluate_counted(states, len(self.dataset)))
        return scores

    def _count_all(self, predictors: Mapping[str, Predictor], workers: int) -> list[States]:
        global _job
        if workers == 1:
            return [self._count(predictors, range(len(self.dataset)))]

        def count(rank: int) -> States:
            mine = range(rank, len(self.dataset), workers)
            return self._count(predictors, mine, show=rank == 0)

        _job = count  # inherited by the forked processes
        fork = multiprocessing.get_context("fork")
        try:
            with ProcessPoolExecutor(workers, mp_context=fork) as pool:
                return list(pool.map(_run_job, range(workers)))
        finally:
            _job = None

    def _count(
        self, predictors: Mapping[str, Predictor], indices: Sequence[int], show: bool = True
    ) -> States:
        """Return the counts of all predictors and metrics over some samples."""
        metrics = {name: self._metrics() for name in predictors}
        bar = tqdm(indices, desc="scoring", unit="sample", disable=None if show else True)
        for index in bar:
            sample = self.dataset[index]
            for name, predict in predictors.items():
                scored = {**vars(sample), **predict(sample), "sample_idx": index}
                for metric in metrics[name]:
                    metric.process(None, [scored])
        return {name: [metric.counted() for metric in group] for name, group in metrics.items()}

    def _metrics(self) -> list[Any]:
        metrics = [METRICS.build(cfg) for cfg in self._metric_cfgs]
        for metric in metrics:
            metric.dataset_meta = self.dataset.metainfo
        return metrics


_job: Callable[[int], States] | None = None


def _run_job(rank: int) -> States:
    assert _job is not None
    torch.set_num_threads(1)  # the processes share the cores
    return _job(rank)


def split_scorer(cfg: Config) -> Scorer:
    """Return the scorer of a config's test split, or else of its validation split.

    Raises:
        ConfigError: The config has neither.
    """
    for split in ("test", "val"):
        loader, evaluator = cfg.get(f"{split}_dataloader"), cfg.get(f"{split}_evaluator")
        if loader is not None and evaluator is not None:
            with named_config_keys(cfg):
                return Scorer(loader["dataset"], evaluator)
    raise ConfigError("the config has no test_dataloader with a test_evaluator")
