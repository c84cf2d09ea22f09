"""Occupancy metrics: plain functions over arrays, and MMEngine metrics built on them."""
