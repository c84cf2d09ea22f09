"""Heads: from image features to occupied voxels."""

from .base import CameraGeometry, HeadOutput, LidarInput, OccupancyHead
from .cpd_head import CPDHead
from .densifier import CPDDensifier, VoxelLogits
from .point_head import PointHead

__all__ = [
    "CPDDensifier",
    "CPDHead",
    "CameraGeometry",
    "HeadOutput",
    "LidarInput",
    "OccupancyHead",
    "PointHead",
    "VoxelLogits",
]
