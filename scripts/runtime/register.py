"""Importing this module registers the hooks, loops and optimiser wrappers of the training runs."""

from scripts.runtime import checkpoint_hook, finite_steps, hooks, loops

__all__ = ["checkpoint_hook", "finite_steps", "hooks", "loops"]
