"""Building blocks shared by the decoder and the heads."""

from .grid import GridModule, grid_shape
from .grid_mask import GridMask
from .sparse_conv import SparseConv3d, SparseTensor, SubMConv3d
from .sparse_encoder import run_sparse_encoder, use_own_convolutions
from .voxelization import MeanVoxelizer, Voxels

__all__ = [
    "GridMask",
    "GridModule",
    "MeanVoxelizer",
    "SparseConv3d",
    "SparseTensor",
    "SubMConv3d",
    "Voxels",
    "grid_shape",
    "run_sparse_encoder",
    "use_own_convolutions",
]
