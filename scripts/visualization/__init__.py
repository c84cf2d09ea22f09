"""Pictures of occupancy: a software renderer over `models.ops.ray_cast` and composed sheets."""
