"""Building blocks shared by the decoder and the heads."""

from .grid import GridModule, grid_shape
from .grid_mask import GridMask
from .sparse_conv import SparseConv3d, SparseTensor, SubMConv3d

__all__ = ["GridMask", "GridModule", "SparseConv3d", "SparseTensor", "SubMConv3d", "grid_shape"]
