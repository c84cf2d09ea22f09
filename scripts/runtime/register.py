"""Registration of the training runs' hooks, loops and optimiser wrappers, on import."""

from scripts.runtime import (
    averaging,
    batch_norm_sync,
    checkpoint_hook,
    finite_steps,
    hooks,
    loops,
    one_cycle,
    parameter_groups,
)

__all__ = [
    "averaging",
    "batch_norm_sync",
    "checkpoint_hook",
    "finite_steps",
    "hooks",
    "loops",
    "one_cycle",
    "parameter_groups",
]
