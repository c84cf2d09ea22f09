from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from models.ops import voxel_max, voxel_max_reference

BOTH = [voxel_max, voxel_max_reference]


def with_gradient(function: Callable[..., Tensor], *args: Any) -> tuple[Tensor, Tensor]:
    features = args[0].detach().clone().requires_grad_()
    out = function(features, *args[1:])
    generator = torch.Generator().manual_seed(1)
    weight = torch.randn(out.shape, generator=generator, dtype=out.dtype).to(out.device)
    (grad,) = torch.autograd.grad(out, features, weight)
    return out, grad


@pytest.mark.parametrize("function", BOTH)
def test_known_answer(function: Callable[..., Tensor], device: str) -> None:
    features = torch.tensor([[1.0, 5.0], [3.0, 5.0], [-2.0, -1.0]], device=device)
    features.requires_grad_()
    out = function(features, torch.tensor([2, 2, 0], device=device), 4)
    assert out.tolist() == [[-2, -1], [0, 0], [3, 5], [0, 0]]
    out.sum().backward()
    assert features.grad is not None
    assert features.grad.tolist() == [[0, 1], [1, 0], [1, 1]]  # the tie goes to the first


@given(data=st.data())
def test_native_equals_reference(data: Any) -> None:
    generator = torch.Generator().manual_seed(data.draw(st.integers(0, 2**31)))
    dtype = data.draw(st.sampled_from([torch.float32, torch.float64]))
    n, m = data.draw(st.integers(0, 80)), data.draw(st.integers(1, 40))
    channels = data.draw(st.sampled_from([0, 1, 7, 32]))
    features = torch.randn(n, channels, generator=generator, dtype=dtype)
    if data.draw(st.booleans()):
        features = features.round()  # many ties
    if data.draw(st.booleans()):
        features[torch.rand(n, channels, generator=generator) < 0.1] = data.draw(
            st.sampled_from([math.nan, math.inf, -math.inf])
        )
    index = torch.randint(0, m, (n,), generator=generator)
    ours, reference = (with_gradient(function, features, index, m) for function in BOTH)
    for a, b in zip(ours, reference, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=0, equal_nan=True)


def test_float32(device: str) -> None:
    features = torch.randn(500, 9).round(decimals=1)  # some ties
    features[::17, 0], features[::19, 1] = math.nan, -0.0
    index = torch.randint(0, 60, (500,))
    reference = with_gradient(voxel_max_reference, features, index, 61)
    ours = with_gradient(voxel_max, features.to(device), index.to(device), 61)
    for a, b in zip(ours, reference, strict=True):
        torch.testing.assert_close(a.cpu(), b, rtol=0, atol=0, equal_nan=True)


def test_without_gradient(device: str) -> None:
    """Maxima are equal without winners."""
    features = torch.randn(300, 41).round(decimals=1).to(device)
    features[::23, 40], features[::7, 3] = math.nan, math.inf
    index = torch.randint(0, 90, (300,), device=device)
    expected = voxel_max(features.clone().requires_grad_(), index, 91).detach()
    torch.testing.assert_close(
        voxel_max(features, index, 91), expected, rtol=0, atol=0, equal_nan=True
    )


def test_gradcheck() -> None:
    features = torch.randn(12, 3, dtype=torch.float64, requires_grad=True)
    index = torch.randint(0, 5, (12,))
    assert torch.autograd.gradcheck(lambda x: voxel_max(x, index, 6), (features,))


def test_nan_is_not_hidden(device: str) -> None:
    features = torch.tensor([[1.0], [math.nan], [2.0], [math.nan]], device=device)
    index = torch.zeros(4, dtype=torch.int64, device=device)
    out, grad = with_gradient(voxel_max, features, index, 1)
    assert out.isnan().item()
    assert grad.flatten().bool().tolist() == [False, True, False, False]


def test_no_points_and_strides(device: str) -> None:
    nothing, none = torch.empty(0, 3, device=device), torch.empty(0, dtype=torch.int64)
    assert voxel_max(nothing, none.to(device), 2).tolist() == [[0, 0, 0], [0, 0, 0]]
    assert voxel_max(nothing, none.to(device), 0).shape == (0, 3)
    features, index = torch.randn(5, 40).to(device).t(), torch.randint(0, 9, (80,))[::2]
    args = (features, index.to(device), 9)
    ours, reference = (with_gradient(function, *args) for function in BOTH)
    assert torch.equal(ours[0], reference[0]) and torch.equal(ours[1], reference[1])


@pytest.mark.parametrize("channels", [1, 64, 70])
def test_many_points_of_one_voxel(channels: int, device: str) -> None:
    """Simultaneous ties of infinities and of zeros of both signs."""
    values = torch.tensor([-math.inf, -1.0, -0.0, 0.0, 1.0, math.inf])
    for top in range(len(values)):
        features = values[torch.randint(0, top + 1, (300, channels))]
        index = torch.randint(0, 2, (300,))
        reference = with_gradient(voxel_max_reference, features, index, 2)
        ours = with_gradient(voxel_max, features.to(device), index.to(device), 2)
        for a, b in zip(ours, reference, strict=True):
            assert torch.equal(a.cpu(), b)


def test_threads_change_nothing(at_threads: Callable[..., Any]) -> None:
    args = (torch.randn(5000, 8), torch.randint(0, 3000, (5000,)), 3000)
    one, two = (at_threads(n, with_gradient, voxel_max, *args) for n in (1, 2))
    assert torch.equal(one[0], two[0]) and torch.equal(one[1], two[1])


def test_bad_arguments() -> None:
    features, index = torch.rand(4, 2), torch.zeros(4, dtype=torch.int64)
    for function in BOTH:
        with pytest.raises(ValueError, match=r"voxel_index must be int64 \[4\], got .* \[3\]"):
            function(features, index[:3], 2)
        with pytest.raises(ValueError, match=r"features must be .* \[4\]"):
            function(features[:, 0], index, 2)
        with pytest.raises(ValueError, match=r"num_voxels must lie in \[0, .*got -1"):
            function(features, index, -1)
    for bad in (-1, 2):
        with pytest.raises(ValueError, match=rf"voxel_index\[1\] is {bad}, expected"):
            voxel_max(features, torch.tensor([0, bad, 0, 0]), 2)


def test_opcheck() -> None:
    features = torch.randn(6, 3, requires_grad=True)
    index = torch.tensor([0, 0, 1, 3, 3, 3])
    torch.library.opcheck(torch.ops.opus.voxel_max.default, (features, index, 5, True))
    torch.library.opcheck(torch.ops.opus.voxel_max.default, (features.detach(), index, 5, False))
    winner = torch.ops.opus.voxel_max(features.detach(), index, 5, True)[1]
    torch.library.opcheck(torch.ops.opus.voxel_max_backward.default, (torch.randn(5, 3), winner, 6))


def test_more_elements_than_32_bits_can_number(
    lazy_zeros: Callable[..., Tensor], needs_memory: Callable[[float], None]
) -> None:
    needs_memory(10)
    channels = 4096
    n = 2**31 // channels + 2
    features = lazy_zeros(n, channels)
    features[n - 2 :, 4090] = torch.tensor([3.0, 2.0])
    features[n - 1, 4091:] = 1.0
    assert features.numel() > 2**31
    index = torch.zeros(n, dtype=torch.int64)
    index[n - 2 :] = 1
    features.requires_grad_()
    out = voxel_max(features, index, 2)
    assert not out[0].any() and out[1, 4090:].tolist() == [3, 1, 1, 1, 1, 1]
    (grad,) = torch.autograd.grad(out, features, torch.arange(2.0 * channels).view(2, channels))
    assert grad[n - 2, 4089:].tolist() == [8185, 8186, 0, 0, 0, 0, 0]
    assert grad[n - 1, 4089:].tolist() == [0, 0, 8187, 8188, 8189, 8190, 8191]
    assert torch.equal(grad[0], torch.arange(4096.0)) and not grad[1].any()


def test_more_maxima_than_32_bits_can_number(needs_memory: Callable[[float], None]) -> None:
    needs_memory(10)
    channels = 4096
    voxels = 2**31 // channels + 2
    features = torch.arange(2.0 * channels).view(2, channels)
    out = voxel_max(features, torch.tensor([voxels - 1, 3]), voxels)
    assert out.numel() > 2**31
    assert torch.equal(out[[3, voxels - 1]], features.flip(0))
    assert not out[:3].any() and not out[4:9].any() and not out[voxels - 9 : voxels - 1].any()
