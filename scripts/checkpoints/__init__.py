"""Commands for checkpoint files: inspection, publishing, and the merge for fusion models."""
