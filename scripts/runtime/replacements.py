"""Replacements for parts of MMEngine that can lose work.

Configurations keep MMEngine's names.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mmengine.config import ConfigDict

REPLACEMENTS = {
    "CheckpointHook": "DurableCheckpointHook",
    "EpochBasedTrainLoop": "ResumableEpochTrainLoop",
    "IterBasedTrainLoop": "ResumableIterTrainLoop",
    "OptimWrapper": "FiniteOptimWrapper",
    "AmpOptimWrapper": "FiniteAmpOptimWrapper",
}


def replaced_type(kind: Any) -> Any:
    """Return this project's replacement for a type of MMEngine; other types are unchanged."""
    name = kind.rsplit(".", 1)[-1] if isinstance(kind, str) else getattr(kind, "__name__", "")
    return REPLACEMENTS.get(name, kind)


def replaced(part: Any, default_type: str | None = None) -> Any:
    """Return the config of a part with MMEngine's class replaced by this project's.

    Args:
        part: Config of a part, or a built part, which is returned unchanged.
        default_type: Type that MMEngine uses if the config has no `type`.
    """
    if not isinstance(part, Mapping) or part.get("type", default_type) is None:
        return part
    kind = part.get("type", default_type)
    defaults: dict[str, Any] = {}
    if kind == "EpochBasedTrainLoop":
        defaults["val_interval"] = 1  # MMEngine's default; here None means once, at the end
    return ConfigDict({**defaults, **part, "type": replaced_type(kind)})
