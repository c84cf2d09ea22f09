"""Sparse convolutions against dense ones and against spconv run on one thread."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from models import ops
from models.layers import SparseConv3d, SparseTensor, SubMConv3d

SHAPE = (6, 5, 4)


def random_sparse(channels: int, batch: int = 2, number: int = 20) -> SparseTensor:
    cells = torch.randperm(batch * 6 * 5 * 4)[:number]
    coords = torch.stack(torch.unravel_index(cells, (batch, *SHAPE)), dim=1)
    features = torch.randn(number, channels, dtype=torch.float64, requires_grad=True)
    return SparseTensor(features, coords, SHAPE, batch)


def to_dense(features: torch.Tensor, coords: torch.Tensor, batch: int) -> torch.Tensor:
    dense = features.new_zeros(batch, *SHAPE, features.shape[1])
    return dense.index_put(tuple(coords.T), features).permute(0, 4, 1, 2, 3)


def dense_conv(conv: SparseConv3d | SubMConv3d, x: SparseTensor) -> torch.Tensor:
    """Return the dense convolution [B, out, d0, d1, d2] of the same weights."""
    weight = conv.weight.permute(0, 4, 1, 2, 3)
    return F.conv3d(to_dense(x.features, x.coords, x.batch_size), weight, conv.bias, padding=1)


def test_sparse_conv_dilates_and_equals_dense() -> None:
    conv, x = SparseConv3d(3, 4).double(), random_sparse(3)
    out = conv(x)
    active = to_dense(torch.ones(len(x.coords), 1), x.coords, 2)
    reached = F.max_pool3d(active, 3, stride=1, padding=1).squeeze(1).nonzero()
    assert set(map(tuple, out.coords.tolist())) == set(map(tuple, reached.tolist()))
    assert len(out.coords) == len(reached)
    expected = dense_conv(conv, x).permute(0, 2, 3, 4, 1)[tuple(out.coords.T)]
    torch.testing.assert_close(out.features, expected)


def test_submanifold_conv_keeps_the_set_and_equals_dense() -> None:
    conv, x = SubMConv3d(3, 4).double(), random_sparse(3)
    out = conv(x)
    assert set(map(tuple, out.coords.tolist())) == set(map(tuple, x.coords.tolist()))
    expected = dense_conv(conv, x).permute(0, 2, 3, 4, 1)[tuple(out.coords.T)]
    torch.testing.assert_close(out.features, expected)


@pytest.mark.parametrize("cls", [SparseConv3d, SubMConv3d])
def test_gradients_equal_dense(cls: type[SparseConv3d | SubMConv3d]) -> None:
    conv, x = cls(3, 4).double(), random_sparse(3)
    out = conv(x)
    upstream = torch.randn_like(out.features)
    inputs = [x.features, *conv.parameters()]
    actual = torch.autograd.grad((out.features * upstream).sum(), inputs)
    dense = dense_conv(conv, x).permute(0, 2, 3, 4, 1)[tuple(out.coords.T)]
    expected = torch.autograd.grad((dense * upstream).sum(), inputs)
    for a, b in zip(actual, expected, strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("cls", [SparseConv3d, SubMConv3d])
def test_spconv_path_has_the_same_layout(cls: type[SparseConv3d | SubMConv3d]) -> None:
    """spconv's CPU code is correct on one thread (see conftest) and in training mode."""
    pytest.importorskip("spconv")
    conv, x = cls(3, 4), random_sparse(3)
    x = SparseTensor(x.features.detach().float(), x.coords, SHAPE, x.batch_size)
    ours, theirs = conv._forward_native(x), conv._forward_spconv(x)
    ours_by_voxel = dict(zip(map(tuple, ours.coords.tolist()), ours.features, strict=True))
    assert len(ours.coords) == len(theirs.coords)
    assert theirs.spatial_shape == ours.spatial_shape
    if cls is SubMConv3d:  # residual blocks add row by row
        assert torch.equal(theirs.coords, x.coords) and torch.equal(ours.coords, x.coords)
    for coord, features in zip(theirs.coords.tolist(), theirs.features, strict=True):
        torch.testing.assert_close(features, ours_by_voxel[tuple(coord)], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("is_sorted", [True, False])
@pytest.mark.parametrize("cls", [SparseConv3d, SubMConv3d])
def test_method_of_a_gpu_equals_the_cpu(
    cls: type[SparseConv3d | SubMConv3d], is_sorted: bool
) -> None:
    """A table of neighbours and one product equal it, for voxels in any order."""
    conv, x = cls(3, 4, padding=1).double(), random_sparse(3)
    if is_sorted:
        d0, d1, d2 = SHAPE
        grid, *place = x.coords.unbind(1)
        key = ((grid * d0 + place[0]) * d1 + place[1]) * d2 + place[2]
        step = ops.ConvStep(conv.kernel_size, conv.stride, conv.padding)
        chain = ops.voxel_chain(key, 2, SHAPE, [step])
        given = SparseTensor.of_chain(x.features[key.argsort()], chain, 2)
        x.coords = x.coords[key.argsort()]
        x.features = given.features
        assert torch.equal(given.coords, x.coords)
    else:
        given = x
    ours, cpus = conv._forward_gathered(given), conv._forward_native(x)
    assert torch.equal(ours.coords, cpus.coords)
    assert ours.spatial_shape == cpus.spatial_shape
    torch.testing.assert_close(ours.features, cpus.features)
    upstream = torch.randn_like(ours.features)
    inputs = [x.features, *conv.parameters()]
    for own, other in zip(
        torch.autograd.grad(ours.features, inputs, upstream),
        torch.autograd.grad(cpus.features, inputs, upstream),
        strict=True,
    ):
        torch.testing.assert_close(own, other)


def test_tables_are_built_once_for_a_set_of_voxels(monkeypatch: pytest.MonkeyPatch) -> None:
    built = []
    find = ops.voxel_neighbors

    def count(*args: object) -> object:
        built.append(args)
        return find(*args)

    monkeypatch.setattr(ops, "voxel_neighbors", count)
    keys = torch.tensor([3, 17, 40, 41, 100])
    step = ops.ConvStep((3, 3, 3), (2, 2, 2), (1, 1, 1))
    x = SparseTensor.of_chain(torch.randn(5, 4), ops.voxel_chain(keys, 1, SHAPE, [step]), 1)
    for _ in range(3):
        x = SubMConv3d(4, 4)._forward_gathered(x)
    x = SparseConv3d(4, 4, stride=2)._forward_gathered(x)
    for _ in range(2):
        x = SubMConv3d(4, 4)._forward_gathered(x)
    assert len(built) == 3


def test_unknown_backend_is_named() -> None:
    with pytest.raises(ValueError, match="sparse_backend must be one of"):
        SubMConv3d(3, 4, backend="cusparse")


def test_spconv_adds_no_parameters() -> None:
    pytest.importorskip("spconv")
    conv = SubMConv3d(3, 4)
    conv._forward_spconv(SparseTensor(torch.randn(1, 3), torch.tensor([[0, 1, 1, 1]]), SHAPE, 1))
    assert list(conv.state_dict()) == ["weight", "bias"]


@pytest.mark.parametrize(("kind", "padding"), [("subm", 0), ("sparse", 0), ("sparse", (1, 0, 2))])
def test_kernel_of_one_voxel_is_what_the_operation_gives(kind: str, padding: object) -> None:
    """The layer takes a short cut; compare with the general operation, gradients included."""
    torch.manual_seed(0)
    coords = (torch.rand(2, 5, 4, 3) < 0.4).nonzero()
    features = torch.randn(len(coords), 6, requires_grad=True)
    layer = (SubMConv3d if kind == "subm" else SparseConv3d)(6, 4, 1, padding=padding)
    out = layer(SparseTensor(features, coords, (5, 4, 3), 2))
    kernel_map = ops.build_kernel_map(coords, (5, 4, 3), 1, 1, padding, kind == "subm")
    expected = ops.sparse_conv(features, layer.weight, layer.bias, kernel_map)
    assert torch.equal(out.coords, kernel_map.out_coords)
    assert out.spatial_shape == kernel_map.out_shape
    torch.testing.assert_close(out.features, expected)
    inputs, grad = (features, layer.weight, layer.bias), torch.randn_like(expected)
    pairs = zip(
        torch.autograd.grad(out.features, inputs, grad),
        torch.autograd.grad(expected, inputs, grad),
        strict=True,
    )
    for a, b in pairs:
        torch.testing.assert_close(a, b)


def test_kernel_of_one_voxel_avoids_spconvs_shortcut(monkeypatch: pytest.MonkeyPatch) -> None:
    """spconv reads the memory of a weight `[out, 1, 1, 1, in]` as `[in, out]`."""
    torch.manual_seed(0)
    coords, features = torch.tensor([[0, 1, 2, 0], [0, 0, 0, 1]]), torch.randn(2, 3)
    layer = SubMConv3d(3, 5, 1)
    weight, bias = layer.weight.detach(), layer.bias.detach()

    def refuse(*args: object) -> None:
        raise AssertionError("not a matrix product")

    # Nothing else is called on either device.
    monkeypatch.setattr(SubMConv3d, "_forward_spconv", refuse)
    monkeypatch.setattr(SubMConv3d, "_forward_native", refuse)
    out = layer(SparseTensor(features, coords, (3, 3, 3), 1)).features
    torch.testing.assert_close(out, features @ weight.view(5, 3).T + bias)
    assert not torch.allclose(out, features @ weight.view(3, 5) + bias)


def test_spconvs_shortcut_is_as_described() -> None:
    spconv = pytest.importorskip("spconv.pytorch")
    torch.manual_seed(0)
    coords, features = torch.tensor([[0, 1, 2, 0], [0, 0, 0, 1]]).int(), torch.randn(2, 3)
    layer = spconv.SubMConv3d(3, 5, 1, bias=False).train()
    assert layer.weight.shape == (5, 1, 1, 1, 3)
    out = layer(spconv.SparseConvTensor(features, coords, [3, 3, 3], 1)).features
    torch.testing.assert_close(out, features @ layer.weight.view(3, 5))


def test_submanifold_stride() -> None:
    with pytest.raises(ValueError, match=r"needs stride 1, got \(2, 2, 2\)"):
        SubMConv3d(3, 5, 3, stride=2)
