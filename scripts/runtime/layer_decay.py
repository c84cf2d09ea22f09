"""Learning rates of the image backbone that fall from its last block to its first layer."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from scripts.runtime.errors import ConfigError

BACKBONE = "img_backbone."
# Residual blocks as torchvision and mmdet name them: layer1.0, layer1.1, ...
_BLOCK = re.compile(r"\.layer(\d+)\.(\d+)\.")


def with_layer_decay(optim_wrapper: Mapping[str, Any], names: Sequence[str]) -> Mapping[str, Any]:
    """Return the config of an optimiser with `paramwise_cfg.layer_decay` written out.

    With `layer_decay` d, the rate of the last of n blocks stays, that of the block before is d
    times as large, and so on to d^n for what comes before the first block. The rules are entries of
    `custom_keys`, one for each parameter of the backbone, which multiply the rate of the rule that
    applies to it.

    Args:
        optim_wrapper: The config; left as it is.
        names: Names of the model's parameters.

    Raises:
        ConfigError: The value is no share, or the backbone has no blocks `layerN.M`.
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
    """Return number of stage and block of a parameter; None before the first block."""
    match = _BLOCK.search(name)
    return None if match is None else (int(match[1]), int(match[2]))


def _rule_of(name: str, rules: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return the rule that MMEngine applies to a parameter: that of the longest key in its name."""
    for key in sorted(sorted(rules), key=len, reverse=True):
        if key in name:
            return rules[key]
    return {}
