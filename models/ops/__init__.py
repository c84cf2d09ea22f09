"""Native operations and their reference implementations in plain torch; depends only on torch.

The native library (`python setup.py build_ext --inplace`) is loaded at the first use of an
operation, never at import. Every operation `<name>` has a reference implementation
`<name>_reference` with the same arguments.
"""

from ._extension import ExtensionError, is_available, library_path
from .adaptive_mixing import adaptive_mixing, adaptive_mixing_reference
from .chamfer import chamfer_terms, chamfer_terms_reference
from .distance_attention import (
    attention_order,
    distance_attention,
    distance_attention_reference,
)
from .farthest_point_sampling import (
    farthest_point_sampling,
    farthest_point_sampling_reference,
)
from .multi_view_sampling import SharedMaps, multi_view_sampling, multi_view_sampling_reference
from .nearest_neighbor import PointTree, nearest_neighbor, nearest_neighbor_reference
from .ray_cast import OccupancyPyramid, RayHits, ray_cast, ray_cast_reference
from .ray_iou import (
    LabelRays,
    label_rays,
    label_rays_reference,
    ray_iou_counts,
    ray_iou_counts_reference,
)
from .resize_crop import resize_crop, resize_crop_reference, resize_window
from .sigmoid_focal_loss import sigmoid_focal_loss, sigmoid_focal_loss_reference
from .sparse_conv import (
    KernelMap,
    build_kernel_map,
    build_kernel_map_reference,
    sparse_conv,
    sparse_conv_reference,
)
from .unique_voxels import unique_voxels, unique_voxels_reference
from .voxel_light import voxel_light, voxel_light_reference
from .voxel_max import voxel_max, voxel_max_reference
from .voxel_sets import (
    ConvStep,
    Neighbors,
    VoxelChain,
    VoxelSet,
    gathered_conv,
    voxel_chain,
    voxel_chain_reference,
    voxel_neighbors,
    voxel_neighbors_reference,
)
from .voxel_shading import (
    ShadedRays,
    VoxelScene,
    VoxelView,
    voxel_shading,
    voxel_shading_reference,
)
from .winograd_conv import winograd_conv, winograd_conv_reference

__all__ = [
    "ConvStep",
    "ExtensionError",
    "KernelMap",
    "LabelRays",
    "Neighbors",
    "OccupancyPyramid",
    "PointTree",
    "RayHits",
    "ShadedRays",
    "SharedMaps",
    "VoxelChain",
    "VoxelScene",
    "VoxelSet",
    "VoxelView",
    "adaptive_mixing",
    "adaptive_mixing_reference",
    "attention_order",
    "build_kernel_map",
    "build_kernel_map_reference",
    "chamfer_terms",
    "chamfer_terms_reference",
    "distance_attention",
    "distance_attention_reference",
    "farthest_point_sampling",
    "farthest_point_sampling_reference",
    "gathered_conv",
    "is_available",
    "label_rays",
    "label_rays_reference",
    "library_path",
    "multi_view_sampling",
    "multi_view_sampling_reference",
    "nearest_neighbor",
    "nearest_neighbor_reference",
    "ray_cast",
    "ray_cast_reference",
    "ray_iou_counts",
    "ray_iou_counts_reference",
    "resize_crop",
    "resize_crop_reference",
    "resize_window",
    "sigmoid_focal_loss",
    "sigmoid_focal_loss_reference",
    "sparse_conv",
    "sparse_conv_reference",
    "unique_voxels",
    "unique_voxels_reference",
    "voxel_chain",
    "voxel_chain_reference",
    "voxel_light",
    "voxel_light_reference",
    "voxel_max",
    "voxel_max_reference",
    "voxel_neighbors",
    "voxel_neighbors_reference",
    "voxel_shading",
    "voxel_shading_reference",
    "winograd_conv",
    "winograd_conv_reference",
]
