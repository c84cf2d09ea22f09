"""Datasets, samplers, and the selection of history frames."""
