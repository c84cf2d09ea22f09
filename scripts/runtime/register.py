"""Importing this module registers the hooks and loops of the training runs."""

from scripts.runtime import hooks, loops
from scripts.visualization import training_hook

__all__ = ["hooks", "loops", "training_hook"]
