"""Importing this module registers the hooks and loops of the training runs."""

from scripts.runtime import hooks, loops

__all__ = ["hooks", "loops"]
