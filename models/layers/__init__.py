"""Building blocks shared by the decoder and the heads."""

from .grid import GridModule, grid_shape
from .grid_mask import GridMask
from .sparse_conv import SparseConv3d, SparseTensor, SubMConv3d, convert_layouts_together
from .sparse_encoder import encoder_steps, run_sparse_encoder, use_own_convolutions
from .sparse_layout import SparseLayout
from .voxelization import MeanVoxelizer, Voxels

__all__ = [
    "GridMask",
    "GridModule",
    "MeanVoxelizer",
    "SparseConv3d",
    "SparseLayout",
    "SparseTensor",
    "SubMConv3d",
    "Voxels",
    "convert_layouts_together",
    "encoder_steps",
    "grid_shape",
    "run_sparse_encoder",
    "use_own_convolutions",
]
