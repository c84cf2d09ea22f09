"""Chains of voxel sets and their neighbours, against references and the CPU's convolution."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from models import ops
from models.ops import ConvStep

SHAPE = (6, 5, 37)  # rows longer than a word
DILATE = ConvStep((3, 3, 3), (1, 1, 1), (1, 1, 1))
HALVE = ConvStep((3, 3, 3), (2, 2, 2), (1, 1, 1))
FLATTEN = ConvStep((3, 1, 1), (2, 1, 1), (0, 0, 0))
WIDE = ConvStep((1, 2, 36), (1, 3, 1), (0, 1, 20))
CHAINS = {
    "voxels alone": [],
    "dilation": [DILATE],
    "encoder": [HALVE, HALVE, FLATTEN],
    "uneven": [WIDE, DILATE],
}


def some_keys(device: str, grids: int = 3, number: int = 60) -> Tensor:
    """Return repeated keys, and some outside the grids."""
    rng = torch.Generator().manual_seed(number)
    most = grids * math.prod(SHAPE)
    return torch.randint(-20, most + 20, (number,), generator=rng).to(device)


def assert_same(found: ops.VoxelChain, expected: ops.VoxelChain) -> None:
    assert torch.equal(found.ends, expected.ends)
    assert torch.equal(found.place, expected.place)
    assert len(found.sets) == len(expected.sets)
    for own, other in zip(found.sets, expected.sets, strict=True):
        assert own.shape == other.shape
        for name in ("keys", "words", "up_to"):
            assert torch.equal(getattr(own, name), getattr(other, name)), name


@pytest.mark.parametrize("name", CHAINS)
@pytest.mark.parametrize("is_limited", [False, True])
def test_equals_reference(name: str, is_limited: bool, device: str) -> None:
    steps, keys = CHAINS[name], some_keys(device)
    capacity = [40, 200, 30, 100][: len(steps) + 1] if is_limited else None
    found = ops.voxel_chain(keys, 3, SHAPE, steps, capacity)
    expected = ops.voxel_chain_reference(keys, 3, SHAPE, steps, capacity)
    assert_same(found, expected)
    for i, step in enumerate(steps):
        pairs = [found.sets[i], found.sets[i + 1], step]
        own, other = ops.voxel_neighbors(*pairs), ops.voxel_neighbors_reference(*pairs)
        assert torch.equal(own.of_outputs, other.of_outputs)
        assert torch.equal(own.of_inputs, other.of_inputs)


def test_capacity_tells_what_was_left_out(device: str) -> None:
    keys = some_keys(device)
    exact = ops.voxel_chain(keys, 3, SHAPE, [DILATE])
    assert exact.ends.device.type == "cpu"
    counts = [len(own) for own in exact.sets]
    limited = ops.voxel_chain(keys, 3, SHAPE, [DILATE], [counts[0] - 5, counts[1] + 7])
    assert limited.ends.cpu().tolist() == exact.ends.tolist()
    assert torch.equal(limited.sets[0].keys, exact.sets[0].keys[:-5])
    assert torch.equal(limited.sets[1].keys[:-7], exact.sets[1].keys)
    assert bool((limited.sets[1].keys[-7:] == -1).all())
    assert bool((limited.sets[1].coords()[-7:, 0] < 0).all())
    left_out = exact.place >= counts[0] - 5
    assert bool((limited.place[left_out] == -1).all())


def test_parts_of_a_list_are_sets_of_their_own(device: str) -> None:
    """Grids of one list, such as the layers of a decoder, are convolved separately."""
    keys = some_keys(device)
    whole = ops.voxel_chain(keys, 3, SHAPE, [DILATE])
    volume = math.prod(SHAPE)
    begins = [[0, *ends[:-1]] for ends in whole.ends.tolist()]
    for grid in range(3):
        own = keys.where((keys >= grid * volume) & (keys < (grid + 1) * volume), -1)
        alone = ops.voxel_chain(own, 3, SHAPE, [DILATE])
        sets = [
            part.part(begins[i][grid], int(whole.ends[i, grid]))
            for i, part in enumerate(whole.sets)
        ]
        for part, expected in zip(sets, alone.sets, strict=True):
            assert torch.equal(part.keys, expected.keys)
        found = ops.voxel_neighbors(*sets, DILATE)
        expected_pairs = ops.voxel_neighbors(*alone.sets, DILATE)
        assert torch.equal(found.of_outputs, expected_pairs.of_outputs)
        assert torch.equal(found.of_inputs, expected_pairs.of_inputs)


@pytest.mark.parametrize("step", [DILATE, HALVE, FLATTEN, WIDE, None])
def test_convolves_as_on_the_cpu(step: ConvStep | None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Outputs and gradients equal products of pairs per kernel position."""
    monkeypatch.setitem(ops.voxel_sets._GATHERED_BYTES, "cpu", 1)  # many slices
    keys = some_keys("cpu", number=400)
    used = step or ConvStep.submanifold((3, 3, 3))
    chain = ops.voxel_chain(keys, 3, SHAPE, [step] if step else [])
    inputs, outputs = chain.sets[0], chain.sets[-1]
    pairs = ops.voxel_neighbors(inputs, outputs, used)
    rng = torch.Generator().manual_seed(0)
    shape = (4, *used.kernel_size, 6)
    tensors = [
        torch.randn(size, generator=rng, dtype=torch.float64).requires_grad_()
        for size in ((len(inputs), 6), shape, (4,))
    ]
    kernel_map = ops.build_kernel_map_reference(
        inputs.coords(), SHAPE, used.kernel_size, used.stride, used.padding, step is None
    )
    assert torch.equal(outputs.coords(), kernel_map.out_coords)
    features, weight, bias = tensors
    found = ops.gathered_conv(features, weight, bias, pairs)
    expected = ops.sparse_conv_reference(features, weight, bias, kernel_map)
    torch.testing.assert_close(found, expected)
    grad = torch.randn(found.shape, generator=rng, dtype=torch.float64)
    for own, other in zip(
        torch.autograd.grad(found, tensors, grad),
        torch.autograd.grad(expected, tensors, grad),
        strict=True,
    ):
        torch.testing.assert_close(own, other)


def test_no_voxel_at_all(device: str) -> None:
    keys = torch.empty(0, dtype=torch.int64, device=device)
    chain = ops.voxel_chain(keys, 2, SHAPE, [DILATE])
    assert [len(own) for own in chain.sets] == [0, 0] and chain.ends.tolist() == [[0, 0]] * 2
    pairs = ops.voxel_neighbors(*chain.sets, DILATE)
    features = torch.zeros(0, 2, device=device, requires_grad=True)
    weight = torch.ones(3, 3, 3, 3, 2, device=device, requires_grad=True)
    out = ops.gathered_conv(features, weight, None, pairs)
    assert out.shape == (0, 3)
    out.sum().backward()
    assert weight.grad is not None and not weight.grad.any()


def test_threads_change_nothing(at_threads) -> None:  # type: ignore[no-untyped-def]
    keys = torch.randint(0, 200 * 200 * 16, (60_000,), generator=torch.Generator().manual_seed(1))
    one, four = (at_threads(n, ops.voxel_chain, keys, 1, (200, 200, 16), [DILATE]) for n in (1, 4))
    assert_same(one, four)


def test_arguments_are_checked(device: str) -> None:
    keys = some_keys(device)
    with pytest.raises(ValueError, match=r"keys must be int64 \[n\]"):
        ops.voxel_chain(keys.int(), 3, SHAPE)
    with pytest.raises(ValueError, match="voxels together"):
        ops.voxel_chain(keys, 2**20, (1024, 1024, 64))
    chain = ops.voxel_chain(keys, 3, SHAPE, [HALVE])
    with pytest.raises(ValueError, match="maps 3 grids"):
        ops.voxel_neighbors(*chain.sets, DILATE)
    pairs = ops.voxel_neighbors(*chain.sets, HALVE)
    weight = torch.zeros(2, 3, 3, 3, 4, device=device)
    with pytest.raises(ValueError, match=r"features must be \[\d+, C_in\]"):
        ops.gathered_conv(torch.zeros(1, 4, device=device), weight, None, pairs)
    features = torch.zeros(len(chain.sets[0]), 5, device=device)
    with pytest.raises(ValueError, match="weight has 4 input channels, features have 5"):
        ops.gathered_conv(features, weight, None, pairs)
