"""What val.py's options add to the evaluator of a config."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from mmengine.config import Config

from scripts.runtime.errors import ConfigError

MASKS = ("camera", "lidar", "both", "none")


def choose_masks(cfg: Config, masks: Sequence[str]) -> None:
    """Have the occupancy metric of a config's test split count other voxels, in place.

    Scores under the config's own mask keep their names; those under another one get its name
    (`occ3d_lidar/mIoU`), since they compare with nothing published.

    Args:
        cfg: The merged config.
        masks: Of MASKS, one metric each; none given leaves the config as it is.

    Raises:
        ConfigError: The evaluator has no occupancy metric, or its data set no such masks.
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
                "--masks is for data sets with camera and LiDAR masks: this one's labels mark "
                "noise instead, which never counts; leave --masks out"
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
    """Have the test split's evaluator write every prediction to disk, in place.

    Samples without a label file are predicted too; no metric scores them.

    Args:
        cfg: The merged config.
        predictions: Folder for compressed sparse voxels, or None.
        submission: Folder for the Occ3D benchmark's dense files, or None.

    Raises:
        ConfigError: The config evaluates nothing, or both folders are the same.
    """
    if predictions is None and submission is None:
        return
    if predictions == submission:
        raise ConfigError(
            "--save-predictions and --submission would write files of one name to one folder: "
            "give them two"
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
