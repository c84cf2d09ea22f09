"""Commands over checkpoint files: inspection, and the merge that fusion models start from."""
