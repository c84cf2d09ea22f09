"""Config sections that are not parts: the keys and values that MMEngine reads from them.

MMEngine ignores unknown keys in most of them, or fails on them only after minutes.
"""

from __future__ import annotations

import inspect
import logging
import re
from collections.abc import Collection, Mapping
from typing import Any

from mmengine.runner import Runner

from scripts.runtime.errors import ConfigError
from scripts.runtime.parts import LOADERS
from scripts.runtime.settings import did_you_mean

_RULE_KEYS = ("lr_mult", "decay_mult")
# Keys that MMEngine reads, by the section's dotted path.
_KEYS: dict[str, Collection[str]] = {
    "randomness": list(inspect.signature(Runner.set_randomness).parameters)[1:],
    "env_cfg": ("cudnn_benchmark", "mp_cfg", "dist_cfg", "resource_limit"),
    "env_cfg.mp_cfg": ("mp_start_method", "opencv_num_threads"),
    "auto_scale_lr": ("enable", "base_batch_size"),
    "custom_imports": ("imports", "allow_failed_imports"),
    "optim_wrapper.clip_grad": (
        "type", "max_norm", "norm_type", "error_if_nonfinite", "foreach", "clip_value",
    ),
    "optim_wrapper.paramwise_cfg": (
        "custom_keys", "bias_lr_mult", "bias_decay_mult", "norm_decay_mult", "flat_decay_mult",
        "dwconv_decay_mult", "dcn_offset_lr_mult", "bypass_duplicate", "layer_decay",
    ),
}  # fmt: skip


def check_sections(cfg: Mapping[str, Any]) -> None:
    """Check sections that are not parts.

    Raises:
        ConfigError: Nothing reads a key, or a value is invalid.
    """
    has_constructor = "constructor" in (cfg.get("optim_wrapper") or {})
    for path, known in _KEYS.items():
        section = _at(cfg, path)
        if section is None or (has_constructor and path.startswith("optim_wrapper")):
            continue
        if not isinstance(section, Mapping):
            raise ConfigError(f"{path} is {section!r}, expected a dict")
        _check_keys(path, section, known)
    rules = _at(cfg, "optim_wrapper.paramwise_cfg.custom_keys")
    for name, rule in (rules or {}).items() if not has_constructor else ():
        _check_keys(f"optim_wrapper.paramwise_cfg.custom_keys['{name}']", rule, _RULE_KEYS)
    _check_values(cfg)


def check_custom_keys(optim_wrapper: Mapping[str, Any], names: Collection[str]) -> None:
    """Check that every rule of `paramwise_cfg.custom_keys` applies to a parameter.

    Args:
        optim_wrapper: Config of the optimiser.
        names: Names of the model's parameters.

    Raises:
        ConfigError: A key is not part of any parameter's name.
    """
    rules = _at(optim_wrapper, "paramwise_cfg.custom_keys") or {}
    for key in rules:
        if not any(key in f".{name}" for name in names):
            parts = {part for name in names for part in name.split(".") if not part.isdigit()}
            prefixes = {name.rsplit(".", depth)[0] for name in names for depth in range(1, 4)}
            raise ConfigError(
                f"optim_wrapper.paramwise_cfg.custom_keys['{key}'] is in no parameter's name"
                f"{did_you_mean(key, parts | prefixes)}: correct it, or leave it out"
            )


def _at(cfg: Mapping[str, Any], path: str) -> Any:
    node: Any = cfg
    for key in path.split("."):
        node = node.get(key) if isinstance(node, Mapping) or hasattr(node, "get") else None
    return node


def _check_keys(path: str, section: Mapping[str, Any], known: Collection[str]) -> None:
    for key in section:
        if key not in known:
            raise ConfigError(
                f"{path} has no key '{key}'{did_you_mean(key, known)}; it takes {', '.join(known)}"
            )


def _check_values(cfg: Mapping[str, Any]) -> None:
    for name in LOADERS:
        workers = (cfg.get(name) or {}).get("num_workers", 0)
        if not isinstance(workers, int) or workers < 0:
            raise ConfigError(
                f"{name}.num_workers is {workers!r}: it must be a whole number; 0 loads in the "
                "main process"
            )
    norm = _at(cfg, "optim_wrapper.clip_grad.max_norm")
    if norm is not None and not (isinstance(norm, (int, float)) and norm > 0):
        raise ConfigError(f"optim_wrapper.clip_grad.max_norm is {norm!r}: it must be above 0")
    level = cfg.get("log_level")
    names = logging.getLevelNamesMapping() if hasattr(logging, "getLevelNamesMapping") else {}
    if isinstance(level, str) and names and level not in names:
        raise ConfigError(f"log_level is '{level}'{did_you_mean(level, names)}")
    if cfg.get("launcher") not in (None, "none"):
        raise ConfigError(
            f"launcher is '{cfg['launcher']}': leave it out; dist_train.sh and torchrun start "
            "several processes"
        )
    for entry in cfg.get("revise_keys") or ():
        try:
            pattern, replacement = entry
            re.sub(pattern, replacement, "")
        except (ValueError, TypeError, re.error) as error:
            raise ConfigError(
                f"revise_keys holds {entry!r}, expected (regular expression, replacement): {error}"
            ) from None
    if cfg.get("strategy") is not None:
        raise ConfigError(
            "strategy is only read by MMEngine's FlexibleRunner, whose runs cannot be resumed "
            "exactly: leave it out, and start several processes with dist_train.sh"
        )
