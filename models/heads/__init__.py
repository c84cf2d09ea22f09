"""Heads, which predict occupied voxels from feature maps."""

from .base import OccupancyHead
from .cpd_head import CPDHead
from .densifier import CPDDensifier, VoxelLogits
from .first_hit_head import FirstHitHead
from .interface import CameraGeometry, HeadOutput, LidarInput
from .point_head import PointHead
from .query_memory import QueryMemory, SequenceFrame
from .seen_surfaces import SeenSurfaces

__all__ = [
    "CPDDensifier",
    "CPDHead",
    "CameraGeometry",
    "FirstHitHead",
    "HeadOutput",
    "LidarInput",
    "OccupancyHead",
    "PointHead",
    "QueryMemory",
    "SeenSurfaces",
    "SequenceFrame",
    "VoxelLogits",
]
