"""Changes of a config's evaluator for the options of val.py."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from mmengine.config import Config

from scripts.runtime.errors import ConfigError

MASKS = ("camera", "lidar", "both", "none")


def choose_masks(cfg: Config, masks: Sequence[str]) -> None:
    """Set the masks of the occupancy metric in a config's test split, in place.

    Scores under the config's own mask keep their names. Scores under another mask are prefixed with
    its name (`occ3d_lidar/mIoU`), because they are not comparable to published ones.

    Args:
        cfg: The merged config.
        masks: Values from MASKS, one metric each; an empty sequence leaves the config unchanged.

    Raises:
        ConfigError: The evaluator has no occupancy metric, or its data set has no such masks.
    """
    if not masks:
        return
    metrics = _test_metrics(cfg)
    chosen: list[dict[str, Any]] = []
    for metric in metrics:
        if metric["type"] != "OccupancyMetric":
            chosen.append(metric)
            continue
        own = metric.get("mask", "camera")
        if own == "valid":
            raise ConfigError(
                "--masks is for data sets with camera and LiDAR masks; the labels of this one mark "
                "ignored voxels instead: leave --masks out"
            )
        own, prefix = own or "none", metric.get("prefix") or "occ3d"
        for mask in dict.fromkeys(masks):
            name = prefix if mask == own else f"{prefix}_{mask}"
            value = None if mask == "none" else mask
            chosen.append({**metric, "mask": value, "prefix": name})
    if all(metric["type"] != "OccupancyMetric" for metric in metrics):
        raise ConfigError("--masks: the config's test_evaluator has no OccupancyMetric to change")
    cfg.test_evaluator = chosen


def save_outputs(cfg: Config, predictions: str | None, submission: str | None) -> None:
    """Add metrics that write every prediction to disk to the test split's evaluator, in place.

    Samples without a label file are predicted but not scored.

    Args:
        cfg: The merged config.
        predictions: Folder for compressed sparse voxels, or None.
        submission: Folder for the Occ3D benchmark's dense files, or None.

    Raises:
        ConfigError: The config has no evaluator, or both folders are the same.
    """
    if predictions is None and submission is None:
        return
    if predictions == submission:
        raise ConfigError(
            "--save-predictions and --submission would write files of the same names: "
            "give two folders"
        )
    added = [
        dict(type="SavePredictions", out_dir=folder, submission=dense)
        for folder, dense in ((predictions, False), (submission, True))
        if folder is not None
    ]
    from loaders.datasets.wrappers import with_optional_labels

    cfg.test_evaluator = [*_test_metrics(cfg), *added]
    cfg.test_dataloader["dataset"] = with_optional_labels(cfg.test_dataloader["dataset"])


def _test_metrics(cfg: Config) -> list[dict[str, Any]]:
    evaluator = cfg.get("test_evaluator")
    if evaluator is None:
        raise ConfigError("the config has no test_evaluator: val.py needs one")
    metrics = evaluator if isinstance(evaluator, (list, tuple)) else [evaluator]
    return [dict(metric) for metric in metrics]
