"""Importing this module registers the hooks, loops and optimiser wrappers of the training runs."""

from scripts.runtime import (
    batch_norm_sync,
    checkpoint_hook,
    finite_steps,
    hooks,
    loops,
    parameter_groups,
)

__all__ = [
    "batch_norm_sync",
    "checkpoint_hook",
    "finite_steps",
    "hooks",
    "loops",
    "parameter_groups",
]
