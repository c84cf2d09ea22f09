"""Sets of voxels on the device, and sparse convolutions as gathered matrix products.

Dimensions:
    n points, m voxels of a set, K = k0 * k1 * k2 positions of a kernel, C channels.

A chain of sets (the voxels of the points, then the output voxels of successive convolutions) is
computed with a single device synchronisation. A convolution between two sets consists of a table of
neighbours, one matrix product and one gather; the same holds for its two gradients. There are no
atomic additions, so results are bitwise reproducible.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from ._extension import native, on_load, runs_natively

__all__ = [
    "ConvStep",
    "Neighbors",
    "VoxelChain",
    "VoxelSet",
    "gathered_conv",
    "voxel_chain",
    "voxel_chain_reference",
    "voxel_neighbors",
    "voxel_neighbors_reference",
]

Triple = tuple[int, int, int]

# Size of the gathered rows in memory at once: on a GPU large enough to hide launch times, on a CPU
# small enough for the cache.
_GATHERED_BYTES = {"cpu": 2 * 2**20}
_GATHERED_BYTES_ON_DEVICE = 256 * 2**20


@dataclass(frozen=True)
class ConvStep:
    """Geometry of a sparse convolution.

    Attributes:
        kernel_size: (k0, k1, k2).
        stride: along the three axes.
        padding: along the three axes.
    """

    kernel_size: Triple
    stride: Triple
    padding: Triple

    @classmethod
    def submanifold(cls, kernel_size: Triple) -> ConvStep:
        """Return the centred step of stride 1, whose output voxels are its input voxels."""
        first, second, third = (size // 2 for size in kernel_size)
        return cls(kernel_size, (1, 1, 1), (first, second, third))

    def out_shape(self, shape: Triple) -> Triple:
        """Return the extents of the output grid."""
        d0, d1, d2 = (
            max(0, (size + 2 * pad - kernel) // stride + 1)
            for size, pad, kernel, stride in zip(
                shape, self.padding, self.kernel_size, self.stride, strict=True
            )
        )
        return d0, d1, d2


@dataclass(frozen=True, eq=False)
class VoxelSet:
    """Sorted list of voxels of a batch of grids, or a range of such a list.

    Attributes:
        keys: int64 [m], ascending: `((grid * d0 + i0) * d1 + i1) * d2 + i2`. In a list with a
            capacity, -1 in rows after the last voxel.
        shape: extents (d0, d1, d2) of a grid.
        num_grids: number of grids in the batch.
        words: int32, bitmap with one bit per voxel of all grids.
        up_to: int64, number of voxels up to and including each word.
        first: index of the range's first voxel in the whole list.
    """

    keys: Tensor
    shape: Triple
    num_grids: int
    words: Tensor
    up_to: Tensor
    first: int = 0

    def __len__(self) -> int:
        return len(self.keys)

    def coords(self) -> Tensor:
        """Return int64 [m, 4], (grid, i0, i1, i2); rows after the last voxel have grid < 0."""
        d0, d1, d2 = self.shape
        rest, i2 = self.keys.div(d2, rounding_mode="floor"), self.keys.remainder(d2)
        rest, i1 = rest.div(d1, rounding_mode="floor"), rest.remainder(d1)
        return torch.stack([rest.div(d0, rounding_mode="floor"), rest.remainder(d0), i1, i2], 1)

    def part(self, begin: int, end: int) -> VoxelSet:
        """Return the range `begin` to `end` of the list."""
        return VoxelSet(
            self.keys[begin:end], self.shape, self.num_grids, self.words, self.up_to,
            self.first + begin,
        )  # fmt: skip


@dataclass(frozen=True, eq=False)
class VoxelChain:
    """Sets of voxels; each is the set of output voxels of a convolution on the previous one.

    Attributes:
        sets: the sets, one more than `steps`.
        steps: the convolutions.
        ends: int64 [sets, grids], end of each grid's voxels in the list of a set; on the CPU, or
            on the device of the keys if a capacity was given.
        place: int64 [n], index of every key in the list of the first set; -1 for invalid keys.
    """

    sets: tuple[VoxelSet, ...]
    steps: tuple[ConvStep, ...]
    ends: Tensor
    place: Tensor


@dataclass(frozen=True, eq=False)
class Neighbors:
    """Tables of neighbours for a convolution from one set of voxels to another.

    Attributes:
        of_outputs: int32 [outputs, K], the input that each kernel position reads; the number of
            inputs stands for "no voxel".
        of_inputs: int32 [inputs, K], the output that each kernel position adds to; the number of
            outputs stands for "no voxel".
    """

    of_outputs: Tensor
    of_inputs: Tensor


def voxel_chain(
    keys: Tensor,
    num_grids: int,
    shape: Triple,
    steps: Sequence[ConvStep] = (),
    capacity: Sequence[int] | None = None,
) -> VoxelChain:
    """Find the voxels of points and the output voxels of successive convolutions.

    The function synchronises with the device once, because shapes depend on the numbers of voxels.
    With a `capacity` it does not synchronise.

    Args:
        keys: int64 [n], linear index of each point's voxel; keys outside the grids are ignored.
        num_grids: number of grids in the batch.
        shape: extents of a grid.
        steps: convolutions; the outputs of each are the inputs of the next.
        capacity: rows of each set's list. Voxels beyond it are dropped; `ends` then exceeds it.

    Returns:
        The sets, in ascending order.

    Raises:
        ValueError: a shape, dtype or setting does not fit, or the grids have more than 2**34
            voxels together.
        ExtensionError: the native extension is not built.
    """
    steps = tuple(steps)
    if not runs_natively("voxel_sets", keys):
        return voxel_chain_reference(keys, num_grids, shape, steps, capacity)
    flat = [
        [number for step in steps for number in getattr(step, name)]
        for name in ("kernel_size", "stride", "padding")
    ]
    members, words, up_to, ends, place = native("voxel_sets")(
        keys, num_grids, list(shape), *flat, capacity
    )
    sets = []
    for i, parts in enumerate(zip(members, words, up_to, strict=True)):
        shape = steps[i - 1].out_shape(shape) if i else shape
        own_keys, own_words, own_up_to = parts
        sets.append(VoxelSet(own_keys, shape, num_grids, own_words, own_up_to))
    return VoxelChain(tuple(sets), steps, ends, place)


def voxel_chain_reference(
    keys: Tensor,
    num_grids: int,
    shape: Triple,
    steps: Sequence[ConvStep] = (),
    capacity: Sequence[int] | None = None,
) -> VoxelChain:
    """Compute `voxel_chain` in plain torch (reference implementation)."""
    total = num_grids * math.prod(shape)
    known = (keys >= 0) & (keys < total)
    lists, ends = [keys[known].unique()], []
    shapes = [shape]
    for step in steps:
        inputs = VoxelSet(lists[-1], shapes[-1], num_grids, keys, keys)
        shapes.append(step.out_shape(shapes[-1]))
        reached = [key[key >= 0] for key in _reached_keys(inputs, step)]
        lists.append(torch.cat(reached).unique() if reached else lists[-1][:0])
    sets = []
    for i, (own, own_shape) in enumerate(zip(lists, shapes, strict=True)):
        volume = math.prod(own_shape)
        borders = torch.arange(1, num_grids + 1, device=keys.device) * volume
        ends.append(torch.searchsorted(own, borders))
        words, up_to = _bitmap(own, num_grids * volume)
        if capacity is not None:
            padded = own.new_full((capacity[i],), -1)
            padded[: len(own)] = own[: capacity[i]]
            own = padded
        sets.append(VoxelSet(own, own_shape, num_grids, words, up_to))
    place = torch.searchsorted(lists[0], keys).where(known, -1)
    all_ends = torch.stack(ends)
    if capacity is not None:
        place = place.where(place < capacity[0], -1)
    else:
        all_ends = all_ends.cpu()
    return VoxelChain(tuple(sets), tuple(steps), all_ends, place)


def voxel_neighbors(inputs: VoxelSet, outputs: VoxelSet, step: ConvStep) -> Neighbors:
    """Find the neighbours of a convolution without a device synchronisation.

    Args:
        inputs: input voxels of the convolution.
        outputs: its output voxels; the same object as `inputs` for a submanifold convolution.
        step: its geometry.

    Raises:
        ValueError: the grids of the sets do not fit the step.
    """
    if outputs.shape != step.out_shape(inputs.shape) or inputs.num_grids != outputs.num_grids:
        raise ValueError(
            f"{step} maps {inputs.num_grids} grids of {inputs.shape} to grids of "
            f"{step.out_shape(inputs.shape)}, got {outputs.num_grids} of {outputs.shape}"
        )
    of_outputs = _table(outputs, inputs, inputs.shape, step, of_inputs=False)
    if inputs is outputs:  # the inverse of a kernel position is the opposite position
        return Neighbors(of_outputs, of_outputs.flip(1))
    return Neighbors(of_outputs, _table(inputs, outputs, inputs.shape, step, of_inputs=True))


def voxel_neighbors_reference(inputs: VoxelSet, outputs: VoxelSet, step: ConvStep) -> Neighbors:
    """Compute `voxel_neighbors` in plain torch (reference implementation)."""
    known = outputs.keys[outputs.keys >= 0]
    of_inputs = []
    for key in _reached_keys(inputs, step):
        place = torch.searchsorted(known, key)
        found = (
            (place < len(known)) & (known[place.clamp(max=max(len(known) - 1, 0))] == key)
            if len(known)
            else torch.zeros_like(key, dtype=torch.bool)
        )
        of_inputs.append(place.where(found, len(outputs)))
    back = torch.stack(of_inputs, 1) if of_inputs else inputs.keys.new_empty(len(inputs), 0)
    table = back.new_full((len(outputs) + 1, back.shape[1]), len(inputs))
    own = torch.arange(len(inputs), device=back.device)[:, None].expand_as(back)
    table.scatter_(0, back, own)
    return Neighbors(table[:-1].int(), back.int())


def gathered_conv(
    features: Tensor, weight: Tensor, bias: Tensor | None, pairs: Neighbors
) -> Tensor:
    """Compute a sparse convolution as the product of gathered features and weights.

    Args:
        features: [n, C_in], of the inputs.
        weight: [C_out, k0, k1, k2, C_in] (spconv 2's layout).
        bias: [C_out] or None; added to every output voxel.
        pairs: neighbours returned by `voxel_neighbors`.

    Under autocast, features and weights are converted to its dtype.

    Returns:
        [m, C_out] in `features`' dtype, differentiable (once) in `features`, `weight` and
        `bias`.

    Raises:
        ValueError: a shape does not fit the neighbours.
    """
    positions = pairs.of_outputs.shape[1]
    if features.dim() != 2 or len(features) != len(pairs.of_inputs):
        raise ValueError(
            f"features must be [{len(pairs.of_inputs)}, C_in], got {list(features.shape)}"
        )
    if weight.dim() != 5 or weight.shape[1:4].numel() != positions:
        raise ValueError(
            f"weight must be [C_out, k0, k1, k2, C_in] with {positions} positions, got "
            f"{list(weight.shape)}"
        )
    if weight.shape[4] != features.shape[1]:
        raise ValueError(
            f"weight has {weight.shape[4]} input channels, features have {features.shape[1]}"
        )
    inputs: tuple[Tensor | None, ...] = (features, weight, bias)
    kind = features.device.type
    if torch.is_autocast_enabled(kind):  # autocast does not apply to a custom Function
        half = torch.get_autocast_dtype(kind)
        inputs = tuple(None if x is None else x.to(half) for x in inputs)
    out = _GatheredConv.apply(*inputs, pairs.of_outputs, pairs.of_inputs)
    return out.to(features.dtype)


class _GatheredConv(torch.autograd.Function):
    """Gathered convolution. The backward pass gathers again instead of storing K * C_in columns."""

    @staticmethod
    def forward(  # type: ignore[override]
        ctx: Any, features: Tensor, weight: Tensor, bias: Tensor | None, table: Tensor,
        back: Tensor,
    ) -> Tensor:  # fmt: skip
        ctx.save_for_backward(features, weight, table, back)
        by_position = weight.flatten(1, 3).permute(1, 2, 0)  # [K, C_in, C_out]
        out = _convolved(features, by_position, table)
        return out if bias is None else out.add_(bias)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        features, weight, table, back = ctx.saved_tensors
        need_features, need_weight, need_bias = ctx.needs_input_grad[:3]
        grad = grad.contiguous()
        grad_features = grad_weight = None
        if need_features:
            grad_features = _convolved(grad, weight.flatten(1, 3).permute(1, 0, 2), back)
        if need_weight:
            # Choose the table that gathers less.
            if _gathers_less(grad, back, features, table):
                turned = _summed_products(features, grad, back)  # [C_in, K * C_out]
                flat = turned.unflatten(1, (-1, len(weight))).permute(2, 1, 0).flatten(1)
            else:
                flat = _summed_products(grad, features, table)  # [C_out, K * C_in]
            grad_weight = flat.reshape(weight.shape).to(weight.dtype)
        return grad_features, grad_weight, grad.sum(0) if need_bias else None, None, None


def _convolved(source: Tensor, weight: Tensor, table: Tensor) -> Tensor:
    """Sum over kernel positions the gathered rows of `source` [n, A] times `weight` [K, A, B].

    There are two methods. One gathers the rows and computes one product; it stores A numbers per
    entry of the table. The other computes the products of all rows and sums them while gathering;
    it stores B numbers per row of `source` and position. The method that stores less is used.
    """
    positions, depth, width = weight.shape
    if len(source) * width < len(table) * depth:
        return _summed_rows(source, weight, table)
    flat = weight.reshape(positions * depth, width)
    out = source.new_empty(len(table), width)
    for rows, gathered in _gathered(source, table):
        torch.mm(gathered, flat, out=out[rows])
    return out


def _summed_rows(source: Tensor, weight: Tensor, table: Tensor) -> Tensor:
    positions, _, width = weight.shape
    number, step = len(source), max(1, _max_gathered(source) // max(1, len(source) * width))
    total: Tensor | None = None
    for begin in range(0, positions, step):
        own = weight[begin : begin + step]
        count = len(own)
        # one extra row for entries without a voxel
        products = source.new_empty(number * count + 1, width)
        flat = own.permute(1, 0, 2).reshape(-1, count * width)
        torch.mm(source, flat, out=products[:-1].view(number, count * width))
        index = table[:, begin : begin + count].long() * count
        index += torch.arange(count, device=table.device)
        index.clamp_(max=number * count)
        part = F.embedding_bag(index, products, mode="sum", padding_idx=number * count)
        total = part if total is None else total.add_(part)
    return source.new_zeros(len(table), width) if total is None else total


def _summed_products(rows: Tensor, source: Tensor, table: Tensor) -> Tensor:
    """Return the product [A, K * B] of `rows` [m, A], transposed, and the gathered rows."""
    width = table.shape[1] * source.shape[1]
    wide = torch.promote_types(rows.dtype, torch.float32)
    total = rows.new_zeros(rows.shape[1], width, dtype=wide)
    for part, gathered in _gathered(source, table):
        if rows.dtype == wide:
            total.addmm_(rows[part].t(), gathered)
        else:  # 16-bit dtypes: accumulate the slices in float32
            total += rows[part].t() @ gathered
    return total


def _gathers_less(a: Tensor, a_table: Tensor, b: Tensor, b_table: Tensor) -> bool:
    return len(a_table) * a.shape[1] < len(b_table) * b.shape[1]


def _gathered(source: Tensor, table: Tensor) -> Any:
    """Yield slices of the table and their gathered rows [rows, K * A]; zeros for "no voxel"."""
    padded = F.pad(source, (0, 0, 0, 1))
    step = max(64, _max_gathered(source) // max(1, table.shape[1] * source.shape[1]))
    for begin in range(0, len(table), step):
        rows = slice(begin, begin + step)
        part = table[rows]
        yield rows, padded.index_select(0, part.flatten()).view(len(part), -1)


def _max_gathered(source: Tensor) -> int:
    """Return the largest number of gathered elements in memory at once."""
    most = _GATHERED_BYTES.get(source.device.type, _GATHERED_BYTES_ON_DEVICE)
    return most // source.element_size()


def _table(
    rows: VoxelSet, others: VoxelSet, shape: Triple, step: ConvStep, of_inputs: bool
) -> Tensor:
    if not runs_natively("voxel_neighbors", rows.keys):
        pairs = voxel_neighbors_reference(*((rows, others) if of_inputs else (others, rows)), step)
        return pairs.of_inputs if of_inputs else pairs.of_outputs
    return native("voxel_neighbors")(
        rows.keys, list(shape), list(step.kernel_size), list(step.stride), list(step.padding),
        of_inputs, rows.num_grids, others.words, others.up_to, others.first, len(others),
    )  # fmt: skip


def _reached_keys(inputs: VoxelSet, step: ConvStep) -> list[Tensor]:
    """Return, for each kernel position, the output key of every input; -1 for none."""
    out_shape = step.out_shape(inputs.shape)
    grid, *place = inputs.coords().unbind(1)
    keys = []
    for position in range(math.prod(step.kernel_size)):
        _, k1, k2 = step.kernel_size
        offset = (position // (k1 * k2), position // k2 % k1, position % k2)
        key, reaches = grid, inputs.keys >= 0
        for axis in range(3):
            shifted = place[axis] + step.padding[axis] - offset[axis]
            out = shifted.div(step.stride[axis], rounding_mode="floor")
            reaches = reaches & (out * step.stride[axis] == shifted)
            reaches = reaches & (out >= 0) & (out < out_shape[axis])
            key = key * out_shape[axis] + out
        keys.append(key.where(reaches, -1))
    return keys


def _bitmap(members: Tensor, num_keys: int) -> tuple[Tensor, Tensor]:
    """Return the words and counts of a set in the layout of the native operation."""
    num_words = -(-num_keys // 32) + 1
    bits = torch.ones_like(members) << members.remainder(32)
    words = members.new_zeros(num_words).index_add_(0, members // 32, bits)
    counts = members.new_zeros(num_words).index_add_(0, members // 32, torch.ones_like(members))
    signed = words.where(words < 2**31, words - 2**32)
    return signed.int(), counts.cumsum(0)


@on_load
def _register() -> None:
    @torch.library.register_fake("opus::voxel_sets")
    def _(
        keys: Tensor, num_grids: int, shape: list[int], kernels: list[int], strides: list[int],
        paddings: list[int], capacity: list[int] | None,
    ) -> tuple[list[Tensor], list[Tensor], list[Tensor], Tensor, Tensor]:  # fmt: skip
        ctx = torch.library.get_ctx()
        shapes = [(shape[0], shape[1], shape[2])]
        for i in range(0, len(kernels), 3):
            numbers = (values[i : i + 3] for values in (kernels, strides, paddings))
            step = ConvStep(*((a, b, c) for a, b, c in numbers))
            shapes.append(step.out_shape(shapes[-1]))
        members, words, up_to = [], [], []
        for i, own in enumerate(shapes):
            num_words = (num_grids * math.prod(own) + 31) // 32 + 1
            size = ctx.new_dynamic_size() if capacity is None else capacity[i]
            members.append(keys.new_empty(size))
            words.append(keys.new_empty(num_words, dtype=torch.int32))
            up_to.append(keys.new_empty(num_words))
        ends = keys.new_empty((len(shapes), num_grids), device=None if capacity else "cpu")
        return members, words, up_to, ends, keys.new_empty(keys.shape)

    @torch.library.register_fake("opus::voxel_neighbors")
    def _(
        rows: Tensor, shape: list[int], kernel_size: list[int], stride: list[int],
        padding: list[int], of_inputs: bool, num_grids: int, words: Tensor, up_to: Tensor,
        first: int, size: int,
    ) -> Tensor:  # fmt: skip
        return rows.new_empty((len(rows), math.prod(kernel_size)), dtype=torch.int32)
