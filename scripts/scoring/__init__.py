"""Scoring of predictions without a model: files on disk, and the image-blind prior."""
