"""Scores as JSON and as a table, with the measured config, checkpoint and versions."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from loaders.metrics.tables import format_table
from scripts.runtime.atomic_write import write_atomically, write_json
from scripts.runtime.environment import git_commit, package_versions


def _plain(value: Any) -> Any:
    """Return a value for JSON: numpy scalars unwrapped, NaN (an absent class) as null."""
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


def write_report_json(path: str | Path, content: Mapping[str, Any]) -> Path:
    """Write a report as JSON atomically."""
    return write_json(path, _plain(content), indent=2)


def score_report(metrics: Mapping[str, Any], **facts: Any) -> dict[str, Any]:
    """Return the scores together with the facts that identify the measurement.

    Args:
        metrics: Values by metric name.
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


def write_report(path: str | Path, report: Mapping[str, Any]) -> Path:
    """Write a report as JSON, and as a table to a file with the suffix .txt.

    Args:
        path: JSON file.
        report: Return value of `score_report`.

    Returns:
        The JSON file.
    """
    path = write_report_json(path, report)
    table = report_table(report) + "\n"
    write_atomically(path.with_suffix(".txt"), lambda file: file.write_text(table))
    return path


def report_table(report: Mapping[str, Any]) -> str:
    """Return a report as text: the facts, the scores, and the scores per class."""
    metrics: Mapping[str, Any] = report["metrics"]
    facts = {key: value for key, value in report.items() if key not in ("metrics", "versions")}
    lines = [f"{key}: {_words(value)}" for key, value in facts.items() if value not in (None, {})]
    lines += [f"versions: {_words(report['versions'])}", ""]
    totals = {name: value for name, value in metrics.items() if "/IoU_" not in name}
    lines.append(format_table(["score", "value"], [[k, _number(v)] for k, v in totals.items()]))
    columns = list(dict.fromkeys(name.split("/")[0] for name in metrics if "/IoU_" in name))
    if columns:
        classes = dict.fromkeys(name.split("/IoU_", 1)[1] for name in metrics if "/IoU_" in name)
        rows: list[list[str | float]] = [
            [name, *(float(metrics.get(f"{column}/IoU_{name}", math.nan)) for column in columns)]
            for name in classes
        ]
        lines += ["", format_table(["class", *columns], rows)]
    return "\n".join(lines)


def _words(value: Any) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{key} {_words(item)}" for key, item in value.items())
    return f"{value:.1f}" if isinstance(value, float) else str(value)


def _number(value: Any) -> str | float:
    return float(value) if isinstance(value, float) else str(value)
