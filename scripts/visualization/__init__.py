"""Visualization of occupancy: a software renderer over `models.ops.ray_cast`, composed sheets."""
