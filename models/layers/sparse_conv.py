"""Sparse 3-D convolutions with spconv's parameter layout, on the CPU and on other devices.

CPU tensors use `models.ops.sparse_conv`. Tensors on other devices, and voxels of a chain, use a
table of neighbours, one gather and one matrix product (`models.ops.gathered_conv`). With
`backend='spconv'`, CUDA tensors use spconv. Kernels of one voxel are matrix products with every
backend, because spconv's shortcut for them reads a weight `[out, 1, 1, 1, in]` as `[in, out]` and
gives other results than its general code.

Dimension letters: V active voxels, C channels, k kernel size along an axis.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models import ops
from models.errors import MissingPackageError, ModelConfigError

from .sparse_layout import converted

BACKENDS = ("own", "spconv")


@dataclass(eq=False)
class SparseTensor:
    """Features of the active voxels of a batch of dense grids.

    Attributes:
        features: `[V, C]`.
        coords: int64 `[V, 4]`, unique rows (sample, d0, d1, d2). Kernels have the same order of
            axes.
        spatial_shape: Size of the grid along (d0, d1, d2).
        batch_size: Number of samples.
        kernel_maps: Cached maps of submanifold convolutions over these voxels, by kernel size.
        voxels: The same voxels as a bitmap, if `coords` is its ascending list; None if `coords`
            has any order.
        following: Precomputed output voxels of the next convolutions in a chain, each with its
            convolution.
        neighbors: Cached neighbour tables of convolutions from these voxels.
    """

    features: Tensor
    coords: Tensor
    spatial_shape: tuple[int, int, int]
    batch_size: int
    kernel_maps: dict[tuple[int, int, int], ops.KernelMap] = field(default_factory=dict)
    voxels: ops.VoxelSet | None = None
    following: tuple[tuple[ops.ConvStep, ops.VoxelSet], ...] = ()
    neighbors: dict[ops.ConvStep, ops.Neighbors] = field(default_factory=dict)

    @classmethod
    def of_chain(cls, features: Tensor, chain: ops.VoxelChain, batch_size: int) -> SparseTensor:
        """Return a tensor with features `[V, C]` on the first voxel set of a chain."""
        first = chain.sets[0]
        following = tuple(zip(chain.steps, chain.sets[1:], strict=True))
        return cls(
            features, first.coords(), first.shape, batch_size, voxels=first, following=following
        )


class _SparseConvBase(nn.Module):
    """Base class of the two kinds of sparse convolution: parameters and dispatch."""

    submanifold: bool

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int | Sequence[int] = 3,
        stride: int | Sequence[int] = 1,
        padding: int | Sequence[int] = 1,
        bias: bool = True,
        backend: str = "own",
    ) -> None:
        super().__init__()
        if backend not in BACKENDS:
            raise ModelConfigError(f"sparse_backend must be one of {BACKENDS}, got {backend!r}.")
        self.backend = backend
        self.in_channels = in_channels
        self.out_channels = out_channels
        self.kernel_size = _triple(kernel_size)
        self.stride = _triple(stride)
        self.padding = _triple(padding)
        if self.submanifold and self.stride != (1, 1, 1):
            raise ValueError(f"a submanifold convolution needs stride 1, got {self.stride}")
        self.weight = nn.Parameter(torch.empty(out_channels, *self.kernel_size, in_channels))
        self.bias = nn.Parameter(torch.empty(out_channels)) if bias else None
        self._spconv: tuple[nn.Module, ...] = ()  # in a tuple: not a child, adds no parameters
        self.reset_parameters()

    def _load_from_state_dict(
        self, state_dict: dict[str, Any], prefix: str, *args: Any, **kwargs: Any
    ) -> None:
        """Load weight and bias; the weight may have any library's layout.

        A weight with equal numbers of inputs and outputs fits two older layouts. It is then loaded
        as spconv 1's, unless `convert_layouts_together` has chosen the layout of all weights.
        """
        state_dict.update(converted(state_dict, {prefix + "weight": self.weight.shape}))
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)

    def reset_parameters(self) -> None:
        """Initialise weight and bias like torch's convolutions."""
        bound = 1.0 / math.sqrt(self.in_channels * math.prod(self.kernel_size))
        nn.init.uniform_(self.weight, -bound, bound)
        if self.bias is not None:
            nn.init.uniform_(self.bias, -bound, bound)

    def forward(self, x: SparseTensor) -> SparseTensor:
        """Convolve the active voxels of `x`."""
        if self.kernel_size == (1, 1, 1) and self.stride == (1, 1, 1):
            return self._forward_pointwise(x)
        if x.features.device.type == "cpu" and x.voxels is None:
            return self._forward_native(x)
        # spconv rejects empty input
        if self.backend == "spconv" and x.features.is_cuda and len(x.coords):
            return self._forward_spconv(x)
        return self._forward_gathered(x)

    def _forward_pointwise(self, x: SparseTensor) -> SparseTensor:
        features = F.linear(x.features, self.weight.flatten(1), self.bias)
        if self.submanifold:
            return replace(x, features=features)
        grid, *place = x.coords.unbind(1)
        coords = torch.stack([grid, *map(torch.add, place, self.padding)], dim=1)
        return SparseTensor(features, coords, self._out_shape(x.spatial_shape), x.batch_size)

    def _forward_native(self, x: SparseTensor) -> SparseTensor:
        if self.submanifold:
            if self.kernel_size not in x.kernel_maps:
                x.kernel_maps[self.kernel_size] = self._kernel_map(x)
            kernel_map = x.kernel_maps[self.kernel_size]
            features = ops.sparse_conv(x.features, self.weight, self.bias, kernel_map)
            return replace(x, features=features)
        kernel_map = self._kernel_map(x)
        features = ops.sparse_conv(x.features, self.weight, self.bias, kernel_map)
        return SparseTensor(
            features, kernel_map.out_coords, self._out_shape(x.spatial_shape), x.batch_size
        )

    def _forward_gathered(self, x: SparseTensor) -> SparseTensor:
        if x.voxels is None:
            return self._forward_unsorted(x)
        if self.submanifold:
            step = ops.ConvStep.submanifold(self.kernel_size)
            outputs, following = x.voxels, x.following
        else:
            step = ops.ConvStep(self.kernel_size, self.stride, self.padding)
            outputs, following = _reached(x, step)
        if step not in x.neighbors:
            x.neighbors[step] = ops.voxel_neighbors(x.voxels, outputs, step)
        features = ops.gathered_conv(x.features, self.weight, self.bias, x.neighbors[step])
        if self.submanifold:
            return replace(x, features=features)
        return SparseTensor(
            features, outputs.coords(), outputs.shape, x.batch_size,
            voxels=outputs, following=following,
        )  # fmt: skip

    def _forward_unsorted(self, x: SparseTensor) -> SparseTensor:
        """Convolve unsorted voxels: sort them first; restore the order if the set is unchanged."""
        d0, d1, d2 = x.spatial_shape
        grid, i0, i1, i2 = x.coords.unbind(1)
        key = ((grid * d0 + i0) * d1 + i1) * d2 + i2
        # with a known number of voxels as capacity, the chain does not wait for the device
        chain = ops.voxel_chain(key, x.batch_size, x.spatial_shape, capacity=[len(key)])
        row = torch.empty_like(chain.place).scatter_(
            0, chain.place, torch.arange(len(key), device=key.device)
        )
        ordered = SparseTensor.of_chain(x.features.index_select(0, row), chain, x.batch_size)
        out = self._forward_gathered(ordered)
        if not self.submanifold:
            return out
        return replace(x, features=out.features.index_select(0, chain.place))

    def _kernel_map(self, x: SparseTensor) -> ops.KernelMap:
        return ops.build_kernel_map(
            x.coords,
            x.spatial_shape,
            self.kernel_size,
            stride=self.stride,
            padding=self.padding,
            subm=self.submanifold,
        )

    def _forward_spconv(self, x: SparseTensor) -> SparseTensor:
        spconv = _import_spconv()
        if not self._spconv:
            self._spconv = (self._make_spconv(spconv),)
        (conv,) = self._spconv
        conv.train(self.training)
        parameters: dict[str, Tensor] = {"weight": self.weight}
        if self.bias is not None:
            parameters["bias"] = self.bias
        inputs = spconv.SparseConvTensor(
            x.features.contiguous(),
            x.coords.int().contiguous(),  # spconv ignores strides
            list(x.spatial_shape),
            x.batch_size,
        )
        out = torch.func.functional_call(conv, parameters, (inputs,))
        return SparseTensor(
            out.features, out.indices.long(), tuple(out.spatial_shape), x.batch_size
        )

    def _make_spconv(self, spconv: Any) -> nn.Module:
        cls = spconv.SubMConv3d if self.submanifold else spconv.SparseConv3d
        conv = cls(
            self.in_channels,
            self.out_channels,
            self.kernel_size,
            stride=self.stride,
            padding=self.padding,
            bias=self.bias is not None,
        )
        return conv.to(self.weight.device)

    def _out_shape(self, shape: tuple[int, int, int]) -> tuple[int, int, int]:
        if self.submanifold:
            return shape
        d0, d1, d2 = (
            (size + 2 * padding - kernel) // stride + 1
            for size, padding, kernel, stride in zip(
                shape, self.padding, self.kernel_size, self.stride, strict=True
            )
        )
        return d0, d1, d2

    def extra_repr(self) -> str:
        return (
            f"{self.in_channels}, {self.out_channels}, kernel_size={self.kernel_size}, "
            f"stride={self.stride}, padding={self.padding}, bias={self.bias is not None}"
        )


class SparseConv3d(_SparseConvBase):
    """Sparse convolution: every voxel reached by an active voxel becomes active.

    `weight` is `[out, k0, k1, k2, in]`, as spconv 2 stores it.

    Args:
        in_channels: Channels of the input.
        out_channels: Channels of the output.
        kernel_size: Kernel size along the grid's axes.
        stride: Stride along the grid's axes.
        padding: Zero padding along the grid's axes.
        bias: Whether to add a bias to active voxels.
        backend: `'own'`, or `'spconv'` for spconv on CUDA tensors.
    """

    submanifold = False


class SubMConv3d(_SparseConvBase):
    """Submanifold convolution: the set of active voxels is unchanged. Arguments as SparseConv3d."""

    submanifold = True


def _reached(
    x: SparseTensor, step: ops.ConvStep
) -> tuple[ops.VoxelSet, tuple[tuple[ops.ConvStep, ops.VoxelSet], ...]]:
    """Return the output voxels of a convolution and the precomputed sets after them."""
    if x.following and x.following[0][0] == step:
        return x.following[0][1], x.following[1:]
    assert x.voxels is not None
    chain = ops.voxel_chain(x.voxels.keys, x.voxels.num_grids, x.voxels.shape, [step])
    return chain.sets[1], ()


def convert_layouts_together(container: nn.Module) -> None:
    """Make the sparse convolutions of a module load in the one layout that fits them all.

    The conversion runs with every way of loading the module: `load_state_dict` of the module or
    an ancestor, or MMEngine's `load_checkpoint`.
    """
    container.register_load_state_dict_pre_hook(_convert_layouts)


def _convert_layouts(
    container: nn.Module, state_dict: dict[str, Any], prefix: str, *args: Any
) -> None:
    shapes = {
        f"{prefix}{name}.weight": module.weight.shape
        for name, module in container.named_modules()
        if isinstance(module, _SparseConvBase)
    }
    state_dict.update(converted(state_dict, shapes))


def _triple(value: int | Sequence[int]) -> tuple[int, int, int]:
    if isinstance(value, int):
        return value, value, value
    first, second, third = value
    return first, second, third


def _import_spconv() -> Any:
    try:
        import spconv.pytorch as spconv  # optional dependency, not needed on the CPU
    except ImportError as error:
        raise MissingPackageError(
            "sparse_backend='spconv' needs spconv: install the wheel that matches your CUDA "
            "version, for example `pip install spconv-cu126`, or leave sparse_backend out."
        ) from error
    return spconv
