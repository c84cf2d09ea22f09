"""mmdet3d's sparse LiDAR encoder with this project's sparse convolutions.

mmdet3d builds the encoder. `use_own_convolutions` then replaces its convolutions (spconv's or
mmcv's) by those of `models.layers.sparse_conv`, which run on every device. Parameters keep their
names and spconv 2's layout.

Dimension letters: B batch, V voxels, C channels, D, H, W size of the last sparse grid.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models import ops
from models.errors import ModelConfigError

from .sparse_conv import SparseConv3d, SparseTensor, SubMConv3d, convert_layouts_together


def use_own_convolutions(module: nn.Module, backend: str = "own") -> None:
    """Replace all sparse convolutions of a module; the new ones have newly initialised weights.

    The module can then load weights in any library's layout.

    Args:
        module: The module, changed in place.
        backend: Backend on CUDA, see `SparseConv3d`.

    Raises:
        ModelConfigError: If a kind of sparse convolution is not supported.
    """
    _replace_convolutions(module, backend)
    convert_layouts_together(module)


def _replace_convolutions(module: nn.Module, backend: str) -> None:
    for name, child in module.named_children():
        if hasattr(child, "subm"):
            setattr(module, name, _own_convolution(child, backend))
        else:
            _replace_convolutions(child, backend)


def _own_convolution(conv: Any, backend: str) -> nn.Module:
    dilation = {int(value) for value in conv.dilation}
    if conv.ndim != 3 or conv.inverse or conv.transposed or dilation != {1} or conv.groups != 1:
        raise ModelConfigError(
            f"The sparse convolution {conv} of the LiDAR encoder is not supported."
        )
    kind = SubMConv3d if conv.subm else SparseConv3d
    return kind(
        conv.in_channels,
        conv.out_channels,
        kernel_size=[int(size) for size in conv.kernel_size],
        stride=[int(step) for step in conv.stride],
        padding=[int(pad) for pad in conv.padding],
        bias=conv.bias is not None,
        backend=backend,
    )


def run_sparse_encoder(
    encoder: Any,
    features: Tensor,
    coords: Tensor,
    batch_size: int,
    chain: ops.VoxelChain | None = None,
) -> Tensor:
    """Run a `mmdet3d.SparseEncoder` whose convolutions have been replaced.

    Args:
        encoder: The encoder.
        features: `[V, C]`.
        coords: int64 `[V, 4]` (sample, z, y, x).
        batch_size: B.
        chain: The voxels of all layers, see `encoder_steps`; None to find them where they are
            needed.

    Returns:
        `[B, C*D, H, W]`, rows along y and columns along x.
    """
    shape, steps = encoder_steps(encoder)
    x = SparseTensor(features, coords, shape, batch_size)
    if features.device.type != "cpu" and not _uses_spconv(encoder):
        if chain is None:
            chain = _chain_of_coords(coords, batch_size, shape, steps)
        x = SparseTensor.of_chain(features, chain, batch_size)
    for part in (encoder.conv_input, encoder.encoder_layers, encoder.conv_out):
        x = _run(part, x)
    dense = x.features.new_zeros(batch_size, *x.spatial_shape, x.features.shape[1])
    dense = dense.index_put(tuple(x.coords.unbind(1)), x.features)
    return dense.permute(0, 4, 1, 2, 3).flatten(1, 2)


def _uses_spconv(encoder: Any) -> bool:
    kinds = (SparseConv3d, SubMConv3d)
    return any(isinstance(m, kinds) and m.backend == "spconv" for m in encoder.modules())


def encoder_steps(encoder: Any) -> tuple[tuple[int, int, int], list[ops.ConvStep]]:
    """Return the size (z, y, x) of an encoder's grid, and its convolutions that reach new voxels.

    `ops.voxel_chain` finds the voxels of all layers from these with one wait for the device. There
    are no convolutions where spconv finds the voxels itself.
    """
    depth, height, width = encoder.sparse_shape
    steps = []
    if not _uses_spconv(encoder):
        steps = [
            ops.ConvStep(module.kernel_size, module.stride, module.padding)
            for part in (encoder.conv_input, encoder.encoder_layers, encoder.conv_out)
            for module in part.modules()
            if isinstance(module, SparseConv3d) and module.kernel_size != (1, 1, 1)
        ]
    return (int(depth), int(height), int(width)), steps


def _chain_of_coords(
    coords: Tensor, batch_size: int, shape: tuple[int, int, int], steps: list[ops.ConvStep]
) -> ops.VoxelChain:
    """Return the voxels of all layers, found with one wait for the device.

    `coords` must be sorted by (sample, z, y, x), as returned by the voxeliser.
    """
    grid, z, y, x = coords.unbind(1)
    key = ((grid * shape[0] + z) * shape[1] + y) * shape[2] + x
    return ops.voxel_chain(key, batch_size, shape, steps)


def _run(module: Any, x: SparseTensor) -> SparseTensor:
    if isinstance(module, (SparseConv3d, SubMConv3d)):
        return module(x)
    if hasattr(module, "conv1"):
        return _run_basic_block(module, x)
    children = list(module.children())
    if not children:  # a pointwise layer
        return replace(x, features=_pointwise(module, x.features))
    for child in children:
        x = _run(child, x)
    return x


def _run_basic_block(block: Any, x: SparseTensor) -> SparseTensor:
    out = block.conv1(x)
    out = replace(out, features=torch.relu(_pointwise(block.norm1, out.features)))
    out = block.conv2(out)
    identity = x if block.downsample is None else _run(block.downsample, x)
    features = _pointwise(block.norm2, out.features) + identity.features
    return replace(out, features=torch.relu(features))


def _pointwise(module: nn.Module, features: Tensor) -> Tensor:
    """Apply a pointwise module to features `[V, C]`."""
    if isinstance(module, nn.BatchNorm1d) and module.training and len(features) == 1:
        # a nearly empty sweep: torch raises an error for the batch statistics of one voxel
        return F.batch_norm(
            features,
            module.running_mean,
            module.running_var,
            module.weight,
            module.bias,
            eps=module.eps,
        )
    out: Tensor = module(features)
    return out
