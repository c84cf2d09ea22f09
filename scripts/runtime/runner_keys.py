"""Top-level keys of a config that the Runner or the entry points read; all others are settings."""

from __future__ import annotations

import inspect

from mmengine.runner import FlexibleRunner, Runner

# What MMEngine's runners read beside the arguments of their constructors.
_READ_FROM_CFG = {
    "activation_checkpointing",
    "compile",
    "efficient_conv_bn_eval",
    "find_unused_parameters",
    "model_wrapper_cfg",
    "runner_type",
    "sync_bn",
}
# What the entry points read.
_OURS = {"custom_imports", "drop_mismatched", "revise_keys"}

RUNNER_KEYS = frozenset(
    {*inspect.signature(Runner).parameters, *inspect.signature(FlexibleRunner).parameters}
    | _READ_FROM_CFG
    | _OURS
) - {"cfg"}
