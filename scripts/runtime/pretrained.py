"""Files that parts of a model want to be initialised from."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from mmengine.config import Config

from scripts.runtime.errors import ConfigError


def settle_pretrained(cfg: Config, is_loaded_later: bool) -> list[str]:
    """See to the files that parts of the model want to be initialised from, in place.

    Args:
        cfg: The merged config.
        is_loaded_later: Whether a checkpoint replaces the initial weights: a pretrained file that
            is not there is then not needed.

    Returns:
        Sentences for the log about what was changed.

    Raises:
        ConfigError: A local file is missing and needed.
    """
    notes: list[str] = []
    for where, holder in _dicts(cfg.get("model"), "model"):
        init = holder.get("init_cfg")
        if not isinstance(init, Mapping) or init.get("type") != "Pretrained":
            continue
        path = str(init.get("checkpoint", ""))
        if "://" in path or Path(path).is_file():
            continue
        if not is_loaded_later:
            raise ConfigError(
                f"{where}.init_cfg wants the pretrained file {path}, which does not exist: put it "
                f"there, or train from scratch with --cfg-options {where}.init_cfg=None"
            )
        holder["init_cfg"] = None
        notes.append(f"{path} is not needed: a checkpoint replaces the initial weights")
    return notes


def _dicts(node: Any, where: str = "") -> Iterator[tuple[str, Any]]:
    """All dicts at and below a node of a config, with their dotted paths."""
    if isinstance(node, Mapping):
        yield where, node
        for key, value in list(node.items()):
            yield from _dicts(value, f"{where}.{key}" if where else str(key))
    elif isinstance(node, (list, tuple)):
        for index, value in enumerate(node):
            yield from _dicts(value, f"{where}[{index}]")
