from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from importlib.util import find_spec
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from models.ops import (
    KernelMap,
    build_kernel_map,
    build_kernel_map_reference,
    sparse_conv,
    sparse_conv_reference,
)
from models.ops._extension import native

# kernel, stride, padding, submanifold
SETTINGS = [
    (3, 1, 1, True),
    ((1, 5, 3), 1, 0, True),
    (3, 1, 1, False),
    (3, 2, 1, False),
    (2, 2, 0, False),
    ((1, 3, 2), (2, 1, 3), (0, 1, 0), False),
    ((3, 1, 1), (2, 1, 1), (0, 0, 0), False),
    (3, 2, (0, 1, 1), False),
]


def random_coords(
    shape: tuple[int, ...], density: float, batch: int = 2, sort: bool = True, seed: int = 0
) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    coords = (torch.rand(batch, *shape, generator=generator) < density).nonzero()
    return coords if sort else coords[torch.randperm(len(coords), generator=generator)]


def assert_same_map(a: KernelMap, b: KernelMap) -> None:
    for name in ("out_coords", "pairs", "pairs_by_in", "starts"):
        x, y = getattr(a, name), getattr(b, name)
        assert x.dtype == y.dtype and torch.equal(x, y), name
    assert (a.out_shape, a.kernel_size, a.num_in) == (b.out_shape, b.kernel_size, b.num_in)


def parameters(
    n: int, kernel: tuple[int, ...], c_in: int, c_out: int, dtype: torch.dtype
) -> tuple[Tensor, Tensor, Tensor]:
    features = torch.randn(n, c_in, dtype=dtype, requires_grad=True)
    weight = torch.randn(c_out, *kernel, c_in, dtype=dtype, requires_grad=True)
    return features, weight, torch.randn(c_out, dtype=dtype, requires_grad=True)


def with_gradients(out: Tensor, inputs: tuple[Tensor, ...]) -> list[Tensor]:
    generator = torch.Generator().manual_seed(1)
    grad = torch.randn(out.shape, generator=generator, dtype=out.dtype)
    return [out.detach(), *torch.autograd.grad(out, inputs, grad)]


def dense_conv(
    features: Tensor, weight: Tensor, bias: Tensor, coords: Tensor, shape: tuple[int, ...],
    stride: Any, padding: Any, out_coords: Tensor,
) -> Tensor:  # fmt: skip
    """Convolve the dense volume and read it at the output voxels."""
    batch = int(coords[:, 0].max()) + 1
    dense = features.new_zeros(batch, *shape, features.shape[1])
    dense = dense.index_put(tuple(coords.t()), features)
    out = F.conv3d(
        dense.permute(0, 4, 1, 2, 3), weight.permute(0, 4, 1, 2, 3), bias, stride, padding
    )
    return out.permute(0, 2, 3, 4, 1)[tuple(out_coords.t())]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("sort", [True, False])
@pytest.mark.parametrize(("kernel", "stride", "padding", "subm"), SETTINGS)
def test_agrees_with_dense_and_reference(
    kernel: Any, stride: Any, padding: Any, subm: bool, sort: bool, dtype: torch.dtype
) -> None:
    shape = (9, 8, 6)
    coords = random_coords(shape, 0.25, sort=sort)
    kernel_map = build_kernel_map(coords, shape, kernel, stride, padding, subm)
    inputs = parameters(len(coords), kernel_map.kernel_size, 11, 17, dtype)
    ours = with_gradients(sparse_conv(*inputs, kernel_map), inputs)
    if subm:
        padding = tuple(k // 2 for k in kernel_map.kernel_size)
    dense = dense_conv(*inputs, coords, shape, stride, padding, kernel_map.out_coords)
    reference = sparse_conv_reference(*inputs, kernel_map)
    tolerance = 1e-12 if dtype == torch.float64 else 3e-6
    for expected in (with_gradients(dense, inputs), with_gradients(reference, inputs)):
        for a, b in zip(ours, expected, strict=True):
            torch.testing.assert_close(a, b, rtol=0, atol=tolerance * float(b.abs().max()))


@pytest.mark.parametrize(("kernel", "stride", "padding", "subm"), SETTINGS)
def test_active_set(kernel: Any, stride: Any, padding: Any, subm: bool) -> None:
    """The window of each output voxel contains an input; outputs are in ascending order."""
    shape = (9, 8, 6)
    coords = random_coords(shape, 0.03, sort=False)
    kernel_map = build_kernel_map(coords, shape, kernel, stride, padding, subm)
    if subm:
        assert torch.equal(kernel_map.out_coords, coords)
        return
    dense = torch.zeros(2, 1, *shape)
    dense[:, 0][tuple(coords.t())] = 1
    reached = F.conv3d(dense, torch.ones(1, 1, *kernel_map.kernel_size), None, stride, padding)
    assert kernel_map.out_shape == reached.shape[2:]
    assert torch.equal(kernel_map.out_coords, reached[:, 0].nonzero())


@given(data=st.data())
def test_kernel_map_equals_reference(data: Any) -> None:
    three = st.tuples(*[st.integers(1, 4)] * 3)
    shape = data.draw(st.tuples(*[st.integers(1, 9)] * 3))
    subm = data.draw(st.booleans())
    if subm:
        settings: tuple[Any, ...] = (data.draw(st.tuples(*[st.sampled_from([1, 3, 5])] * 3)), 1, 0)
    else:
        padding = data.draw(st.tuples(*[st.integers(0, 2)] * 3))
        settings = (data.draw(three), data.draw(three), padding)
    density = data.draw(st.sampled_from([0.0, 0.05, 0.5, 1.0]))
    coords = random_coords(
        shape, density, sort=data.draw(st.booleans()), seed=data.draw(st.integers(0, 2**31))
    )
    args = (coords, shape, *settings, subm)
    assert_same_map(build_kernel_map(*args), build_kernel_map_reference(*args))


def test_kernel_map_in_a_lidar_grid() -> None:
    """The fusion model's grid is too large for a dense table."""
    shape = (41, 1600, 1600)
    coords = (torch.rand(4000, 4) * torch.tensor([2, *shape])).long().unique(dim=0)
    corner = torch.tensor([[1, 40, 1599, 1599], [0, 0, 0, 0]])
    coords = torch.cat([coords, corner]).unique(dim=0)
    coords = coords[torch.randperm(len(coords))]
    for subm, stride in ((True, 1), (False, 2)):
        args = (coords, shape, 3, stride, 1, subm)
        assert_same_map(build_kernel_map(*args), build_kernel_map_reference(*args))


def test_gradcheck() -> None:
    coords = random_coords((4, 3, 3), 0.3, batch=1)
    kernel_map = build_kernel_map(coords, (4, 3, 3), 3, padding=1)
    inputs = parameters(len(coords), (3, 3, 3), 2, 3, torch.float64)
    assert torch.autograd.gradcheck(lambda *args: sparse_conv(*args, kernel_map), inputs)


@pytest.mark.parametrize(
    ("c_in", "c_out"), [(1, 1), (64, 18), (64, 17), (7, 9), (5, 16), (16, 4), (24, 40)]
)
def test_channel_counts(c_in: int, c_out: int) -> None:
    coords = random_coords((6, 7, 5), 0.4)
    kernel_map = build_kernel_map(coords, (6, 7, 5), 3, subm=True)
    for dtype in (torch.float32, torch.float64):
        inputs = parameters(len(coords), (3, 3, 3), c_in, c_out, dtype)
        ours = with_gradients(sparse_conv(*inputs, kernel_map), inputs)
        reference = with_gradients(sparse_conv_reference(*inputs, kernel_map), inputs)
        tolerance = 1e-12 if dtype == torch.float64 else 3e-6
        for a, b in zip(ours, reference, strict=True):
            assert a.shape == b.shape
            torch.testing.assert_close(a, b, rtol=0, atol=tolerance * float(b.abs().max()))


def test_without_bias_and_partial_gradients() -> None:
    coords = random_coords((5, 5, 5), 0.3)
    kernel_map = build_kernel_map(coords, (5, 5, 5), 3, padding=1)
    features, weight, bias = parameters(len(coords), (3, 3, 3), 4, 6, torch.float64)
    without = sparse_conv(features, weight, None, kernel_map)
    torch.testing.assert_close(without + bias, sparse_conv(features, weight, bias, kernel_map))
    for wanted in ((features,), (weight,)):
        frozen = [x if x is wanted[0] else x.detach() for x in (features, weight)]
        (grad,) = torch.autograd.grad(sparse_conv(*frozen, None, kernel_map).sum(), wanted)
        (reference,) = torch.autograd.grad(
            sparse_conv_reference(*frozen, None, kernel_map).sum(), wanted
        )
        torch.testing.assert_close(grad, reference)


def test_no_voxels_and_one_voxel() -> None:
    for coords in (torch.empty(0, 4, dtype=torch.int64), torch.tensor([[0, 2, 0, 1]])):
        for subm in (True, False):
            kernel_map = build_kernel_map(coords, (3, 1, 2), 3, padding=1, subm=subm)
            args = (coords, (3, 1, 2), 3, 1, 1, subm)
            assert_same_map(kernel_map, build_kernel_map_reference(*args))
            inputs = parameters(len(coords), (3, 3, 3), 4, 6, torch.float32)
            ours = with_gradients(sparse_conv(*inputs, kernel_map), inputs)
            reference = with_gradients(sparse_conv_reference(*inputs, kernel_map), inputs)
            for a, b in zip(ours, reference, strict=True):
                torch.testing.assert_close(a, b)


def test_grid_smaller_than_the_kernel() -> None:
    coords = torch.tensor([[0, 0, 0, 0]])
    kernel_map = build_kernel_map(coords, (2, 2, 2), 3)
    assert kernel_map.num_out == 0 and kernel_map.out_shape == (0, 0, 0)
    assert sparse_conv(torch.ones(1, 4), torch.ones(6, 3, 3, 3, 4), None, kernel_map).shape == (
        0,
        6,
    )


def test_strided_arguments() -> None:
    coords = random_coords((6, 6, 6), 0.3)
    kernel_map = build_kernel_map(coords.t().contiguous().t(), (6, 6, 6), 3, padding=1)
    features = torch.randn(8, len(coords)).t().requires_grad_()
    weight = torch.randn(3, 3, 3, 8, 16).permute(4, 0, 1, 2, 3).requires_grad_()
    out = sparse_conv(features, weight, None, kernel_map)
    grad = torch.randn(16, kernel_map.num_out).t()
    ours = torch.autograd.grad(out, (features, weight), grad)
    expected = sparse_conv_reference(features, weight, None, kernel_map)
    torch.testing.assert_close(out, expected, rtol=1e-5, atol=1e-5)
    for a, b in zip(ours, torch.autograd.grad(expected, (features, weight), grad), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-4)


def test_nan_stays_where_it_belongs() -> None:
    coords = torch.tensor([[0, 1, 1, 1], [0, 5, 5, 5]])
    kernel_map = build_kernel_map(coords, (8, 8, 8), 3, padding=1)
    features = torch.tensor([[math.nan] * 4, [1.0] * 4])
    out = sparse_conv(features, torch.ones(5, 3, 3, 3, 4), None, kernel_map)
    first = kernel_map.out_coords[:, 1] <= 2
    assert out[first].isnan().all() and out[~first].isfinite().all()


def test_threads_change_nothing(at_threads: Callable[..., Any]) -> None:
    coords = random_coords((40, 40, 8), 0.2)

    def run() -> list[Tensor]:
        torch.manual_seed(2)
        kernel_map = build_kernel_map(coords, (40, 40, 8), 3, padding=1)
        inputs = parameters(len(coords), (3, 3, 3), 32, 24, torch.float32)
        return [kernel_map.pairs, *with_gradients(sparse_conv(*inputs, kernel_map), inputs)]

    for a, b in zip(at_threads(1, run), at_threads(2, run), strict=True):
        assert torch.equal(a, b)


def test_bad_arguments() -> None:
    coords = torch.tensor([[0, 1, 1, 1], [0, 2, 2, 2]])
    shape = (4, 4, 4)
    for build in (build_kernel_map, build_kernel_map_reference):
        with pytest.raises(ValueError, match=r"coords must be int64 \[n, 4\].*int32"):
            build(coords.int(), shape, 3)
        with pytest.raises(ValueError, match="odd kernel"):
            build(coords, shape, 2, subm=True)
        with pytest.raises(ValueError, match="stride must be"):
            build(coords, shape, 3, 0)
        with pytest.raises(RuntimeError, match="unique"):
            build(coords[[0, 1, 0]], shape, 3)
        for bad in ([0, 4, 0, 0], [0, 0, 0, -1], [-1, 0, 0, 0]):
            with pytest.raises(RuntimeError, match="grid of"):
                build(torch.tensor([bad]), shape, 3)
    kernel_map = build_kernel_map(coords, shape, 3)
    features, weight, bias = parameters(2, (3, 3, 3), 4, 6, torch.float32)
    for conv in (sparse_conv, sparse_conv_reference):
        with pytest.raises(ValueError, match=r"features must be \[2, C_in\], got \[1, 4\]"):
            conv(features[:1], weight, bias, kernel_map)
        with pytest.raises(ValueError, match=r"weight must be \[C_out, 3, 3, 3, 4\]"):
            conv(features, weight[:, :2], bias, kernel_map)
        with pytest.raises(ValueError, match=r"bias must be \[6\], got \[5\]"):
            conv(features, weight, bias[:5], kernel_map)
        with pytest.raises(ValueError, match="share float32 or float64"):
            conv(features, weight.double(), bias, kernel_map)


def test_opcheck() -> None:
    coords = random_coords((4, 4, 4), 0.3)
    for subm in (True, False):
        torch.library.opcheck(
            torch.ops.opus.kernel_map.default,
            (coords, [4, 4, 4], [3, 3, 3], [1, 1, 1], [1, 1, 1], subm),
        )
    kernel_map = build_kernel_map(coords, (4, 4, 4), 3, padding=1)
    inputs = parameters(len(coords), (3, 3, 3), 4, 6, torch.float32)
    torch.library.opcheck(
        torch.ops.opus.sparse_conv.default,
        (*inputs, kernel_map.pairs, kernel_map.pairs_by_in, kernel_map.starts, kernel_map.num_out),
    )


@pytest.mark.parametrize("switch", ["OPUS_DISABLE_AVX2", "OPUS_DISABLE_AVX512"])
def test_other_instructions(run_in_new_process: Callable[..., None], switch: str) -> None:
    """The code for processors without them is equal; the choice is made once per process.

    40 and 18 columns leave half a pair of vectors and, with AVX-512, single columns.
    """
    run_in_new_process(
        """
import torch
from models.ops import build_kernel_map, sparse_conv, sparse_conv_reference
torch.manual_seed(0)
coords = (torch.rand(2, 7, 6, 5) < 0.3).nonzero()
kernel_map = build_kernel_map(coords, (7, 6, 5), 3, padding=1)
for c_in, c_out in ((5, 6), (40, 18)):
    inputs = [torch.randn(len(coords), c_in), torch.randn(c_out, 3, 3, 3, c_in), torch.randn(c_out)]
    inputs = [x.double().requires_grad_() for x in inputs]
    ours, reference = sparse_conv(*inputs, kernel_map), sparse_conv_reference(*inputs, kernel_map)
    torch.testing.assert_close(ours, reference)
    grad = torch.randn_like(ours)
    for a, b in zip(*(torch.autograd.grad(out, inputs, grad) for out in (ours, reference))):
        torch.testing.assert_close(a, b)
""",
        **{switch: "1"},
    )


@pytest.mark.skipif(find_spec("spconv") is None, reason="spconv is not installed")
def test_agrees_with_spconv(run_in_new_process: Callable[..., None]) -> None:
    """Voxels and sums equal spconv's for the same parameters.

    spconv's CPU code is correct forward, with one thread, in training mode."""
    run_in_new_process(
        """
import torch
import spconv.pytorch as spconv
from models.ops import build_kernel_map, sparse_conv
torch.manual_seed(0)
torch.set_num_threads(1)
shape = (12, 10, 6)
coords = (torch.rand(2, *shape) < 0.2).nonzero()
features = torch.randn(len(coords), 8)
# spconv reads the memory of the indices and ignores strides
tensor = spconv.SparseConvTensor(features, coords.int().contiguous(), list(shape), 2)

def order(c):
    return (((c[:, 0] * 100 + c[:, 1]) * 100 + c[:, 2]) * 100 + c[:, 3]).argsort()

for cls, stride, padding, subm in (
    (spconv.SparseConv3d, 1, 1, False),
    (spconv.SparseConv3d, 2, (0, 1, 1), False),
    (spconv.SubMConv3d, 1, 1, True),
):
    module = cls(8, 16, 3, stride=stride, padding=padding, bias=True).train()
    torch.nn.init.normal_(module.bias)
    theirs = module(tensor)
    kernel_map = build_kernel_map(coords, shape, 3, stride, padding, subm)
    ours = sparse_conv(features, module.weight, module.bias, kernel_map)
    a, b = order(kernel_map.out_coords), order(theirs.indices.long())
    assert torch.equal(kernel_map.out_coords[a], theirs.indices.long()[b])
    torch.testing.assert_close(ours[a], theirs.features[b], rtol=1e-5, atol=1e-5)
    assert tuple(theirs.spatial_shape) == kernel_map.out_shape
""",
        OMP_NUM_THREADS="1",
    )


@pytest.mark.parametrize("subm", [True, False])
def test_grid_of_more_voxels_than_32_bits_can_number(
    subm: bool, needs_memory: Callable[[float], None]
) -> None:
    needs_memory(3)
    shape = (1500, 1024, 1500)  # two of them, 4.6e9 voxels: 0.9 GB of bits and ranks a set
    coords = random_coords((3, 4, 5), 0.6)
    far = torch.tensor(shape) - torch.tensor([3, 4, 5])
    coords = torch.cat([coords, coords + torch.cat([torch.tensor([0]), far])])
    coords = coords[torch.randperm(len(coords))]
    ours, reference = (
        build(coords, shape, 3, 1, 1, subm)
        for build in (build_kernel_map, build_kernel_map_reference)
    )
    assert_same_map(ours, reference)


def test_features_of_more_elements_than_32_bits_can_number(
    lazy_zeros: Callable[..., Tensor], needs_memory: Callable[[float], None]
) -> None:
    """The gradient of the features is a product of as many rows as the forward pass."""
    needs_memory(10)
    c_in, c_out = 512, 9
    n = 2**31 // c_in + 2
    features = lazy_zeros(n, c_in)
    features[0], features[n - 1] = torch.randn(2, c_in)
    assert features.numel() > 2**31
    features.requires_grad_()
    weight = torch.randn(c_out, 1, 1, 1, c_in, requires_grad=True)
    pairs = torch.tensor([[n - 1, 0], [0, 1]], dtype=torch.int32)
    few = KernelMap(
        torch.zeros(2, 4, dtype=torch.int64), (1, 1, 2), (1, 1, 1), n, pairs, pairs.flip(1),
        torch.tensor([0, 2]),
    )  # fmt: skip
    out = sparse_conv(features, weight, None, few)
    x, flat = features.detach()[[n - 1, 0]], weight.detach().view(c_out, c_in)
    torch.testing.assert_close(out, x @ flat.t(), rtol=1e-4, atol=1e-4)
    grad = torch.randn(2, c_out)
    d_features, d_weight = torch.autograd.grad(out, (features, weight), grad)
    torch.testing.assert_close(d_weight.view(c_out, c_in), grad.t() @ x, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(d_features[[n - 1, 0]], grad @ flat, rtol=1e-4, atol=1e-4)
    assert not d_features[1:9].any() and not d_features[n - 9 : n - 1].any()


def test_output_coordinates_of_a_map_are_checked() -> None:
    coords = torch.tensor([[0, 1, 1, 1]])
    kernel_map = build_kernel_map(coords, (4, 4, 4), 3)
    weight = torch.ones(2, 3, 3, 3, 1)
    for wrong in (torch.tensor(3), coords[:, :3]):
        with pytest.raises(ValueError, match=r"out_coords must be \[m, 4\]"):
            sparse_conv(
                torch.ones(1, 1), weight, None, dataclasses.replace(kernel_map, out_coords=wrong)
            )


def test_more_voxels_than_32_bits_can_number_are_refused() -> None:
    many = 2**31
    coords = torch.zeros(1, 4, dtype=torch.int64).expand(many, 4)
    sentence = f"up to {many - 1} {{}} voxels, whose indices are int32, got {many}"
    for build in (build_kernel_map, build_kernel_map_reference):
        with pytest.raises(ValueError, match=sentence.format("input")):
            build(coords, (4, 4, 4), 3, subm=True)
    with pytest.raises(ValueError, match=sentence.format("input")):
        native("kernel_map")(coords, [4] * 3, [3] * 3, [1] * 3, [1] * 3, True)
    # 2,048 voxels that dilate to 1,024 x 1,024 each
    coords = torch.zeros(2048, 4, dtype=torch.int64)
    coords[:, 1] = torch.arange(2048)
    with pytest.raises(ValueError, match=sentence.format("output")):
        build_kernel_map(coords, (2048, 1, 1), (1, 1024, 1024), padding=(0, 1023, 1023))

    pairs, starts = torch.zeros(2, 0, dtype=torch.int32), torch.zeros(2, dtype=torch.int64)
    features, weight = torch.zeros(1, 1).expand(many, 1), torch.zeros(1, 1, 1, 1, 1)
    with pytest.raises(ValueError, match=f"int32, got {many} and 3"):
        native("sparse_conv")(features, weight, None, pairs, pairs, starts, 3)
    with pytest.raises(ValueError, match=f"int32, got 3 and {many}"):
        native("sparse_conv")(features[:3], weight, None, pairs, pairs, starts, many)
