"""Top-level config keys of the Runner and the entry points; all other keys are settings."""

from __future__ import annotations

import inspect

from mmengine.runner import FlexibleRunner, Runner

# Keys that MMEngine's runners read in addition to their constructors' arguments.
_READ_FROM_CFG = {
    "activation_checkpointing",
    "compile",
    "efficient_conv_bn_eval",
    "find_unused_parameters",
    "model_wrapper_cfg",
    "runner_type",
    "sync_bn",
}
# Keys that the entry points read.
_OURS = {"custom_imports", "drop_mismatched", "revise_keys"}

RUNNER_KEYS = frozenset(
    {*inspect.signature(Runner).parameters, *inspect.signature(FlexibleRunner).parameters}
    | _READ_FROM_CFG
    | _OURS
) - {"cfg"}
