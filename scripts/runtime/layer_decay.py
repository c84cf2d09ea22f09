"""Layer-wise decay of the image backbone's learning rates."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from scripts.runtime.errors import ConfigError

BACKBONE = "img_backbone."
# Residual blocks, named as in torchvision and mmdet: layer1.0, layer1.1, ...
_BLOCK = re.compile(r"\.layer(\d+)\.(\d+)\.")


def with_layer_decay(optim_wrapper: Mapping[str, Any], names: Sequence[str]) -> Mapping[str, Any]:
    """Return the config of an optimiser with `paramwise_cfg.layer_decay` expanded to rules.

    With `layer_decay` d and n blocks, the rate of block i (from 1) is multiplied by d^(n - i), and
    the rate of the layers before the first block by d^n. There is one `custom_keys` entry per
    parameter of the backbone. It multiplies the rate of the rule that otherwise applies to the
    parameter.

    Args:
        optim_wrapper: The config; it is not changed.
        names: Names of the model's parameters.

    Raises:
        ConfigError: The value is not in (0, 1], or the backbone has no blocks `layerN.M`.
    """
    rules = optim_wrapper.get("paramwise_cfg") or {}
    decay = rules.get("layer_decay")
    if decay is None:
        return optim_wrapper
    place = "optim_wrapper.paramwise_cfg.layer_decay"
    if isinstance(decay, bool) or not isinstance(decay, (int, float)) or not 0 < decay <= 1:
        raise ConfigError(f"{place} is {decay!r}: use a factor above 0, at most 1")
    own = [name for name in names if name.startswith(BACKBONE)]
    blocks = sorted({block for name in own if (block := _block(name)) is not None})
    if not blocks:
        raise ConfigError(f"{place} needs an img_backbone with blocks layer1.0, layer1.1, ...")
    given = rules.get("custom_keys") or {}
    written = dict(given)
    for name in own:
        block = _block(name)
        depth = 0 if block is None else blocks.index(block) + 1
        rule = dict(_rule_of(name, given))
        rule["lr_mult"] = rule.get("lr_mult", 1.0) * decay ** (len(blocks) - depth)
        written[name] = rule
    kept = {key: value for key, value in rules.items() if key != "layer_decay"}
    return {**optim_wrapper, "paramwise_cfg": {**kept, "custom_keys": written}}


def _block(name: str) -> tuple[int, int] | None:
    """Return the stage and block number of a parameter; None before the first block."""
    match = _BLOCK.search(name)
    return None if match is None else (int(match[1]), int(match[2]))


def _rule_of(name: str, rules: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return MMEngine's rule for a parameter: the one with the longest matching key."""
    for key in sorted(sorted(rules), key=len, reverse=True):
        if key in name:
            return rules[key]
    return {}
