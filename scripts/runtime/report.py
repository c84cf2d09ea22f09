"""Scores as JSON, with what they were measured on."""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from scripts.runtime.environment import git_commit, package_versions


def _plain(value: Any) -> Any:
    """A JSON value: numpy scalars unwrapped, NaN (a class that never occurs) as null."""
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    if isinstance(value, np.ndarray):
        return _plain(value.tolist())
    if isinstance(value, np.generic):
        return _plain(value.item())
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def write_json(path: str | Path, content: Mapping[str, Any]) -> Path:
    """Write a JSON file in one step: readers see the old file or the whole new one."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(path.name + ".part")
    part.write_text(json.dumps(_plain(content), indent=2) + "\n")
    os.replace(part, path)
    return path


def score_report(metrics: Mapping[str, Any], **facts: Any) -> dict[str, Any]:
    """Scores together with what identifies the measurement.

    Args:
        metrics: Metric names to values.
        **facts: Config, checkpoint and the like.

    Returns:
        A dict for `write_json`.
    """
    return {
        "metrics": dict(metrics),
        **facts,
        "commit": git_commit(),
        "versions": package_versions(),
        "time": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
    }
