"""Sparse 3-D convolution over the active voxels of a batch of grids.

Dimensions:
    n active input voxels, m active output voxels, K = k0 * k1 * k2 kernel positions, R pairs (an
    input voxel, an output voxel and the kernel position that connects them).

Grids and kernels have the same order of axes, d0, d1, d2.
"""

from __future__ import annotations

import itertools
import math
import operator
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ._extension import native, on_load

__all__ = [
    "KernelMap",
    "build_kernel_map",
    "build_kernel_map_reference",
    "sparse_conv",
    "sparse_conv_reference",
]

Triple = tuple[int, int, int]

#: Largest number of voxels of a set, because pairs hold int32 indices.
_MAX_ACTIVE = 2**31 - 1
# Same bounds as in models/csrc/sparse_conv/kernel_map_cpu.cpp: largest extent, stride or padding,
# and largest number of kernel positions.
_MAX_SETTING = 2**31 - 1
_MAX_POSITIONS = 2**20


@dataclass(frozen=True)
class KernelMap:
    """Pairs of input and output voxels of a sparse convolution, by kernel position.

    A map can be reused for all convolutions between the same two voxel sets.

    Attributes:
        out_coords: int64 [m, 4], (batch, d0, d1, d2) of the output voxels. For a submanifold map
            these are the input voxels in input order; otherwise rows are sorted.
        out_shape: extents of the output grid.
        kernel_size: (k0, k1, k2).
        num_in: n.
        pairs: int32 [2, R], rows (input index, output index), grouped by kernel position and
            sorted by output index within each position.
        pairs_by_in: int32 [2, R], the same pairs, sorted by input index within each position.
        starts: int64 [K + 1] on the CPU, first pair of each kernel position.
    """

    out_coords: Tensor
    out_shape: Triple
    kernel_size: Triple
    num_in: int
    pairs: Tensor
    pairs_by_in: Tensor
    starts: Tensor

    @property
    def num_out(self) -> int:
        """Return the number of output voxels, m."""
        return self.out_coords.shape[0]


def build_kernel_map(
    coords: Tensor,
    spatial_shape: Sequence[int],
    kernel_size: int | Sequence[int],
    stride: int | Sequence[int] = 1,
    padding: int | Sequence[int] = 0,
    subm: bool = False,
) -> KernelMap:
    """Find the pairs of a sparse convolution.

    Submanifold: the output voxels are the input voxels; the kernel is centred, has odd extents and
    stride 1, and `padding` is ignored. Otherwise an output voxel is active if its window contains
    an input voxel (the set dilates). The output grid has
    `(extent + 2 * padding - kernel) // stride + 1` voxels along each axis.

    CPU tensors use the native operation, CUDA tensors the reference implementation.

    Args:
        coords: int64 [n, 4], unique rows (batch, d0, d1, d2), in any order.
        spatial_shape: extents of the grid.
        kernel_size: one number or three.
        stride: one number or three.
        padding: one number or three.
        subm: whether the convolution is submanifold.

    Returns:
        The map, an argument of `sparse_conv`.

    Raises:
        ValueError: a shape, dtype or setting does not fit, the kernel has more than 2**20
            positions, or there are more than 2**31 - 1 input or output voxels, which int32 cannot
            index (pairs and features may be more).
        TypeError: a setting is not a whole number.
        RuntimeError: coordinates repeat or lie outside the grid, or the grids of the batch have
            more than 2**33 voxels (native operation only; 1.5 bits per voxel).
        ExtensionError: the tensors are on the CPU and the native extension is not built.
    """
    if coords.is_cuda:
        return build_kernel_map_reference(coords, spatial_shape, kernel_size, stride, padding, subm)
    shape, kernel, step, pad = _settings(coords, spatial_shape, kernel_size, stride, padding, subm)
    out_coords, pairs, pairs_by_in, starts = native("kernel_map")(
        coords, list(shape), list(kernel), list(step), list(pad), subm
    )
    if subm:
        out_coords = coords
    if pairs.shape != pairs_by_in.shape:  # sorted coords: both orders are equal
        pairs = pairs_by_in
    out_shape = _out_shape(shape, kernel, step, pad)
    return KernelMap(out_coords, out_shape, kernel, len(coords), pairs, pairs_by_in, starts)


def build_kernel_map_reference(
    coords: Tensor,
    spatial_shape: Sequence[int],
    kernel_size: int | Sequence[int],
    stride: int | Sequence[int] = 1,
    padding: int | Sequence[int] = 0,
    subm: bool = False,
) -> KernelMap:
    """Compute `build_kernel_map` in plain torch (reference implementation)."""
    shape, kernel, step, pad = _settings(coords, spatial_shape, kernel_size, stride, padding, subm)
    out_shape = _out_shape(shape, kernel, step, pad)
    upper = coords.new_tensor(shape)
    if bool(((coords[:, 1:] < 0) | (coords[:, 1:] >= upper)).any()) or bool((coords < 0).any()):
        raise RuntimeError(f"coords must lie inside the grid of {list(shape)} voxels")
    if len(_linear(coords, shape).unique()) != len(coords):
        raise RuntimeError("coords must be unique")

    hits = [
        _out_of_position(coords, position, out_shape, kernel, step, pad)
        for position in range(math.prod(kernel))
    ]
    if subm:
        out_coords = coords
        keys, order = _linear(coords, shape).sort()
    else:
        keys = torch.cat([key for _, key in hits]).unique()
        order = torch.arange(len(keys), device=coords.device)
        _check_active(len(keys), "output")
        out_coords = _from_linear(keys, out_shape)

    by_out, by_in, starts = [], [], [0]
    for in_index, key in hits:
        rank = torch.searchsorted(keys, key)
        known = (rank < len(keys)) & (keys[rank.clamp(max=max(len(keys) - 1, 0))] == key)
        pair = torch.stack([in_index[known], order[rank[known]]])
        by_in.append(pair)
        by_out.append(pair[:, pair[1].argsort()])
        starts.append(starts[-1] + pair.shape[1])
    return KernelMap(
        out_coords,
        out_shape,
        kernel,
        len(coords),
        torch.cat(by_out, 1).int(),
        torch.cat(by_in, 1).int(),
        torch.tensor(starts),
    )


def sparse_conv(
    features: Tensor, weight: Tensor, bias: Tensor | None, kernel_map: KernelMap
) -> Tensor:
    """Convolve sparsely: `out[o] = bias + sum over pairs (i, o) at k of weight[:, k] @ in[i]`.

    CPU tensors use the native operation, whose results and gradients do not depend on the number of
    threads. CUDA tensors use the reference implementation.

    Args:
        features: [n, C_in], float32 or float64.
        weight: [C_out, k0, k1, k2, C_in] (spconv 2's layout), of the same dtype.
        bias: [C_out] or None; added to every active output voxel.
        kernel_map: the map returned by `build_kernel_map`.

    Returns:
        [m, C_out], differentiable (once) in `features`, `weight` and `bias`.

    Raises:
        ValueError: a shape or dtype does not fit the map, or the map is invalid: an index is out of
            range, pairs are not sorted, or `starts` is not ascending.
        ExtensionError: the tensors are on the CPU and the native extension is not built.
    """
    if features.is_cuda:
        return sparse_conv_reference(features, weight, bias, kernel_map)
    _check_conv(features, weight, bias, kernel_map)
    return native("sparse_conv")(
        features,
        weight,
        bias,
        kernel_map.pairs,
        kernel_map.pairs_by_in,
        kernel_map.starts,
        kernel_map.num_out,
    )


def sparse_conv_reference(
    features: Tensor, weight: Tensor, bias: Tensor | None, kernel_map: KernelMap
) -> Tensor:
    """Compute `sparse_conv` in plain torch by gather, multiply and scatter (reference
    implementation).
    """
    _check_conv(features, weight, bias, kernel_map)
    out = features.new_zeros(kernel_map.num_out, weight.shape[0])
    positions = weight.flatten(1, 3)
    starts = _checked_starts(kernel_map)
    for k, (begin, end) in enumerate(itertools.pairwise(starts)):
        in_index, out_index = kernel_map.pairs[:, begin:end].long()
        out = out.index_add(0, out_index, features[in_index] @ positions[:, k].t())
    return out if bias is None else out + bias


def _out_of_position(
    coords: Tensor, position: int, out_shape: Triple, kernel: Triple, stride: Triple, pad: Triple
) -> tuple[Tensor, Tensor]:
    """Return the pairs of a kernel position: indices of the inputs and keys of the outputs."""
    offset = coords.new_tensor(
        [position // (kernel[1] * kernel[2]), position // kernel[2] % kernel[1],
         position % kernel[2]]
    )  # fmt: skip
    shifted = coords[:, 1:] + coords.new_tensor(pad) - offset
    step = coords.new_tensor(stride)
    out = shifted.div(step, rounding_mode="floor")
    reaches = (shifted == out * step) & (out >= 0) & (out < coords.new_tensor(out_shape))
    in_index = reaches.all(1).nonzero()[:, 0]
    key = _linear(torch.cat([coords[:, :1], out], 1)[in_index], out_shape)
    return in_index, key


def _linear(coords: Tensor, shape: Triple) -> Tensor:
    b, d0, d1, d2 = coords.unbind(1)
    return ((b * shape[0] + d0) * shape[1] + d1) * shape[2] + d2


def _from_linear(key: Tensor, shape: Triple) -> Tensor:
    d2 = key % shape[2]
    d1 = key // shape[2] % shape[1]
    d0 = key // (shape[2] * shape[1]) % shape[0]
    return torch.stack([key // math.prod(shape), d0, d1, d2], 1)


def _out_shape(shape: Triple, kernel: Triple, stride: Triple, pad: Triple) -> Triple:
    d0, d1, d2 = (
        (shape[a] + 2 * pad[a] - kernel[a]) // stride[a] + 1 if shape[a] + 2 * pad[a] >= kernel[a]
        else 0
        for a in range(3)
    )  # fmt: skip
    return d0, d1, d2


def _triple(name: str, value: int | Sequence[int], least: int) -> Triple:
    values = [operator.index(v) for v in (value if isinstance(value, Sequence) else [value] * 3)]
    if len(values) != 3 or not least <= min(values) <= max(values) <= _MAX_SETTING:
        raise ValueError(
            f"{name} must be one or three numbers from {least} to {_MAX_SETTING}, got {value}"
        )
    return values[0], values[1], values[2]


def _settings(
    coords: Tensor,
    spatial_shape: Sequence[int],
    kernel_size: int | Sequence[int],
    stride: int | Sequence[int],
    padding: int | Sequence[int],
    subm: bool,
) -> tuple[Triple, Triple, Triple, Triple]:
    """Check all settings; for a submanifold map, return the centred stride and padding."""
    if coords.dim() != 2 or coords.shape[1] != 4 or coords.dtype != torch.int64:
        raise ValueError(
            f"coords must be int64 [n, 4] (batch, d0, d1, d2), got {coords.dtype} "
            f"{list(coords.shape)}"
        )
    _check_active(len(coords), "input")
    shape = _triple("spatial_shape", spatial_shape, 1)
    kernel = _triple("kernel_size", kernel_size, 1)
    step = _triple("stride", stride, 1)
    pad = _triple("padding", padding, 0)
    if math.prod(kernel) > _MAX_POSITIONS:
        raise ValueError(f"a kernel may have up to {_MAX_POSITIONS} positions, got {kernel}")
    if subm:
        if any(k % 2 == 0 for k in kernel) or step != (1, 1, 1):
            raise ValueError(
                f"a submanifold convolution needs odd kernel extents and stride 1, got kernel "
                f"{kernel} and stride {step}"
            )
        pad = (kernel[0] // 2, kernel[1] // 2, kernel[2] // 2)
    return shape, kernel, step, pad


def _check_active(count: int, kind: str) -> None:
    if count > _MAX_ACTIVE:
        raise ValueError(
            f"a kernel map may have up to {_MAX_ACTIVE} {kind} voxels, whose indices are int32, "
            f"got {count}"
        )


def _check_conv(
    features: Tensor, weight: Tensor, bias: Tensor | None, kernel_map: KernelMap
) -> None:
    if features.dim() != 2 or features.shape[0] != kernel_map.num_in:
        raise ValueError(
            f"features must be [{kernel_map.num_in}, C_in], got {list(features.shape)}"
        )
    k0, k1, k2 = kernel_map.kernel_size
    if weight.dim() != 5 or weight.shape[1:] != (k0, k1, k2, features.shape[1]):
        raise ValueError(
            f"weight must be [C_out, {k0}, {k1}, {k2}, {features.shape[1]}], got "
            f"{list(weight.shape)}"
        )
    if bias is not None and bias.shape != weight.shape[:1]:
        raise ValueError(f"bias must be [{weight.shape[0]}], got {list(bias.shape)}")
    if kernel_map.out_coords.dim() != 2 or kernel_map.out_coords.shape[1] != 4:
        raise ValueError(f"out_coords must be [m, 4], got {list(kernel_map.out_coords.shape)}")
    pairs, starts = kernel_map.pairs, kernel_map.starts
    if pairs.dim() != 2 or pairs.shape[0] != 2 or pairs.dtype != torch.int32:
        raise ValueError(f"pairs must be int32 [2, R], got {pairs.dtype} {list(pairs.shape)}")
    if starts.shape != (k0 * k1 * k2 + 1,) or starts.dtype != torch.int64 or starts.is_cuda:
        raise ValueError(
            f"starts must be int64 [{k0 * k1 * k2 + 1}] on the CPU, got {starts.dtype} "
            f"{list(starts.shape)} on {starts.device}"
        )
    tensors = [features, weight] if bias is None else [features, weight, bias]
    dtypes = {tensor.dtype for tensor in tensors}
    if len(dtypes) != 1 or not dtypes <= {torch.float32, torch.float64}:
        raise ValueError(
            f"features, weight and bias must share float32 or float64, got "
            f"{sorted(str(dtype) for dtype in dtypes)}"
        )


def _checked_starts(kernel_map: KernelMap) -> list[int]:
    """Return `starts` as a list; check the indices, since bad ones would abort a CUDA process."""
    starts: list[int] = kernel_map.starts.tolist()
    pairs = kernel_map.pairs
    if starts[0] != 0 or starts != sorted(starts) or pairs.shape != (2, starts[-1]):
        raise ValueError(
            f"starts must begin with 0, ascend and end with the number of pairs, got pairs "
            f"{list(pairs.shape)} and starts up to {max(starts)}"
        )
    limits = (kernel_map.num_in, kernel_map.num_out)
    for row, limit, kind in zip(pairs, limits, ("input", "output"), strict=True):
        if len(row) and (int(row.min()) < 0 or int(row.max()) >= limit):
            raise ValueError(
                f"pairs must have {kind} indices from 0 to {limit - 1}, got {int(row.min())} to "
                f"{int(row.max())}"
            )
    return starts


@on_load
def _register() -> None:
    @torch.library.register_fake("opus::kernel_map")
    def _(
        coords: Tensor, spatial_shape: list[int], kernel_size: list[int], stride: list[int],
        padding: list[int], subm: bool,
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
        ctx = torch.library.get_ctx()
        num_pairs = ctx.new_dynamic_size()
        num_out = 0 if subm else ctx.new_dynamic_size()
        return (
            coords.new_empty((num_out, 4)),
            coords.new_empty((2, ctx.new_dynamic_size()), dtype=torch.int32),
            coords.new_empty((2, num_pairs), dtype=torch.int32),
            coords.new_empty(math.prod(kernel_size) + 1),
        )

    @torch.library.register_fake("opus::sparse_conv")
    def _(
        features: Tensor, weight: Tensor, bias: Tensor | None, pairs: Tensor, pairs_by_in: Tensor,
        starts: Tensor, num_out: int,
    ) -> Tensor:  # fmt: skip
        return features.new_empty((num_out, weight.shape[0]))

    @torch.library.register_fake("opus::sparse_conv_backward")
    def _(
        grad: Tensor, features: Tensor, weight: Tensor, pairs: Tensor, pairs_by_in: Tensor,
        starts: Tensor, need_features: bool, need_weight: bool,
    ) -> tuple[Tensor, Tensor]:  # fmt: skip
        return (
            features.new_empty(features.shape if need_features else (0,)),
            weight.new_empty(weight.shape if need_weight else (0,)),
        )

    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        features, weight, _, pairs, pairs_by_in, starts, _ = inputs
        ctx.save_for_backward(features, weight, pairs, pairs_by_in, starts)

    def backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
        need_features, need_weight, need_bias = ctx.needs_input_grad[:3]
        grad_features, grad_weight = torch.ops.opus.sparse_conv_backward(
            grad, *ctx.saved_tensors, need_features, need_weight
        )
        return (
            grad_features if need_features else None,
            grad_weight if need_weight else None,
            grad.sum(0) if need_bias else None,
            *([None] * 4),
        )

    torch.library.register_autograd("opus::sparse_conv", backward, setup_context=setup_context)
