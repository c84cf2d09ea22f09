"""Scores of a single sample, computed by the project's metrics."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

# Names in the metrics -> names on a sheet, in this order.
_NAMES = {
    "mIoU": "mIoU",
    "IoU": "IoU",
    "RayIoU": "RayIoU",
    "RayIoU@1": "@1 m",
    "RayIoU@2": "@2 m",
    "RayIoU@4": "@4 m",
}


def sample_scores(
    metrics: Iterable[Any], sample: Mapping[str, Any]
) -> tuple[tuple[str, float], ...]:
    """Score a single sample.

    Args:
        metrics: metrics of a config or a runner. Metrics that cannot score one sample are ignored;
            none is changed.
        sample: the fields of a data sample with a prediction.

    Returns:
        Name and value (percent) in the order they are printed; nothing without ground truth.
    """
    if sample.get("voxel_semantics") is None:
        return ()
    found: dict[str, float] = {}
    for metric in metrics:
        if hasattr(metric, "count") and hasattr(metric, "score"):
            silent = copy.copy(metric)
            silent.log = _no_log
            found.update(silent.score(silent.count(sample)))
    pairs = ((printed, found[name]) for name, printed in _NAMES.items() if name in found)
    return tuple((name, value) for name, value in pairs if np.isfinite(value))


def _no_log(message: str) -> None:
    """Drop the tables that metrics log per evaluation; here each sample is an evaluation."""
