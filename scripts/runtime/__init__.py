"""Code that the entry points share: configs, launching, checkpoints, errors, reports."""
