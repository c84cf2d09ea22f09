"""Datasets and the rules by which they choose frames in time."""
