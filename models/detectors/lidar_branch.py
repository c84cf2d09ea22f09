"""The LiDAR branch of the detector, which computes a bird's-eye-view feature map from points.

The parts are attributes of the detector, with the names of published checkpoints.

Dimension letters: B batch, n points of a sample, C channels, h, w size of the map.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from mmengine.registry import MODELS
from torch import Tensor, nn

from models import ops
from models.errors import ModelConfigError
from models.layers import encoder_steps, run_sparse_encoder, use_own_convolutions

PARTS = ("pts_voxel_layer", "pts_middle_encoder", "pts_backbone", "pts_neck")


def build_lidar_branch(
    configs: Mapping[str, dict | None],
    pc_range: Sequence[float],
    out_channels: int,
    sparse_backend: str = "own",
) -> dict[str, nn.Module]:
    """Build the parts of the branch.

    Args:
        configs: Configurations of `PARTS` by name: the voxeliser, and mmdet3d's sparse encoder,
            backbone and neck.
        pc_range: Range of the predictions in metres, and of the LiDAR voxels.
        out_channels: C of the map.
        sparse_backend: Implementation of the sparse convolutions on CUDA, see `SparseConv3d`.

    Returns:
        Modules by name: `PARTS` and `final_conv`; empty if there are no configurations.

    Raises:
        ModelConfigError: If only some parts are configured, or if the encoder's sparse shape does
            not match the voxeliser.
    """
    missing = [name for name in PARTS if configs[name] is None]
    if len(missing) == len(PARTS):
        return {}
    if missing:
        raise ModelConfigError(
            f"The LiDAR branch needs {', '.join(missing)} as well: configure all."
        )
    built: dict[str, Any] = {}
    built["pts_voxel_layer"] = MODELS.build(
        configs["pts_voxel_layer"], default_args=dict(pc_range=pc_range)
    )
    for name in PARTS[1:]:
        built[name] = MODELS.build(configs[name])
    use_own_convolutions(built["pts_middle_encoder"], sparse_backend)
    _check_sparse_shape(built)
    in_channels = sum(built["pts_neck"].out_channels)
    conv = nn.Conv2d(in_channels, out_channels, 3, padding=1)
    built["final_conv"] = nn.Sequential(OrderedDict(conv=conv, activate=nn.ReLU()))
    return built


def lidar_map(parts: Any, points: Sequence[Tensor]) -> Tensor:
    """Return the map `[B, C, h, w]`, rows along y and columns along x.

    Args:
        parts: The module that has the parts as attributes.
        points: Per sample `[n, 5]`: x, y, z in metres of the occ frame, intensity, time lag in
            seconds. The key frame's points come first, because a voxel uses its first points.
    """
    features, coords, chain = parts.pts_voxel_layer(
        points, *encoder_steps(parts.pts_middle_encoder)
    )
    return map_of_voxels(parts, features, coords, len(points), chain)


def map_of_voxels(
    parts: Any,
    features: Tensor,
    coords: Tensor,
    batch_size: int,
    chain: ops.VoxelChain | None = None,
) -> Tensor:
    """Return the map `[B, C, h, w]` from the voxeliser's output, see `Voxels`."""
    with torch.autocast(features.device.type, enabled=False):
        x = run_sparse_encoder(parts.pts_middle_encoder, features, coords, batch_size, chain)
    (x,) = parts.pts_neck(parts.pts_backbone(x))
    return parts.final_conv(x)


def _check_sparse_shape(built: Mapping[str, Any]) -> None:
    x, y, z = built["pts_voxel_layer"].grid_shape
    found = list(built["pts_middle_encoder"].sparse_shape)
    if found != [z + 1, y, x]:
        raise ModelConfigError(
            f"pts_middle_encoder.sparse_shape is {found}, the range and pts_voxel_layer.voxel_size "
            f"require {[z + 1, y, x]} (z + 1, y, x): change one of them."
        )
