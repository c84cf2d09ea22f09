"""Importing this module registers the hooks and loops of the training runs."""

from scripts.runtime import batch_norm_sync, hooks, loops

__all__ = ["batch_norm_sync", "hooks", "loops"]
