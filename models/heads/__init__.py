"""Heads: from image features to occupied voxels."""

from .base import CameraGeometry, HeadOutput, OccupancyHead
from .cpd_head import CPDHead
from .densifier import CPDDensifier, VoxelLogits

__all__ = [
    "CPDDensifier",
    "CPDHead",
    "CameraGeometry",
    "HeadOutput",
    "OccupancyHead",
    "VoxelLogits",
]
