"""Parts of MMEngine that lose work, and what the entry points use in their place.

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
    """Return the name of this project's class for one of MMEngine's; other types as they are."""
    name = kind.rsplit(".", 1)[-1] if isinstance(kind, str) else getattr(kind, "__name__", "")
    return REPLACEMENTS.get(name, kind)


def replaced(part: Any, default_type: str | None = None) -> Any:
    """Return the config of a part with this project's class in the place of MMEngine's.

    Args:
        part: Config of a part, or the part itself, which stays as it is.
        default_type: What MMEngine takes where the config has no `type`.
    """
    if not isinstance(part, Mapping) or part.get("type", default_type) is None:
        return part
    kind = part.get("type", default_type)
    defaults: dict[str, Any] = {}
    if kind == "EpochBasedTrainLoop":
        defaults["val_interval"] = 1  # MMEngine's default; None here: once, at the end
    return ConfigDict({**defaults, **part, "type": replaced_type(kind)})
