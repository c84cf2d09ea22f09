"""3 x 3 convolutions by Winograd's algorithm, against torch's own in double precision."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from models import ops
from models.ops._extension import native

# images, channels in and out, height, width: whole tiles, parts of tiles, less than a tile
SIZES = [(2, 16, 32, 8, 12), (3, 32, 16, 7, 9), (1, 48, 16, 2, 5), (1, 16, 16, 1, 1)]


def inputs(
    images: int, channels: int, outputs: int, height: int, width: int
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    shapes = (
        (images, channels, height, width), (outputs, channels, 3, 3), (outputs,),
        (images, outputs, height, width),
    )  # fmt: skip
    x, weight, bias, grad = (torch.randn(shape, generator=generator) for shape in shapes)
    return x, weight, bias, grad


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("channels_last", [True, False])
@pytest.mark.parametrize("threads", [1, 2])
def test_values_and_gradients(size: tuple[int, ...], channels_last: bool, threads: int) -> None:
    x, weight, bias, grad = inputs(*size)
    layout = torch.channels_last if channels_last else torch.contiguous_format
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        leaves = [t.contiguous(memory_format=layout).requires_grad_() for t in (x, weight)]
        leaves.append(bias.clone().requires_grad_())
        out = ops.winograd_conv(*leaves)
        found = [out.detach(), *torch.autograd.grad(out, leaves, grad)]
        with torch.no_grad():
            assert torch.equal(ops.winograd_conv(*leaves), out)
    finally:
        torch.set_num_threads(before)
    exact = [t.double().requires_grad_() for t in (x, weight, bias)]
    expected = F.conv2d(*exact, padding=1)
    wanted = [expected.detach(), *torch.autograd.grad(expected, exact, grad.double())]
    assert out.is_contiguous(memory_format=torch.channels_last)
    for a, b in zip(found, wanted, strict=True):
        scale = float(b.abs().max())
        torch.testing.assert_close(a.double(), b, rtol=1e-5, atol=2e-5 * scale)


def test_more_tiles_than_are_computed_at_once() -> None:
    x, weight, _, grad = inputs(2, 16, 16, 61, 83)  # 2 * 16 * 21 tiles
    leaves = [x.requires_grad_(), weight.requires_grad_()]
    out = ops.winograd_conv(*leaves)
    found = [out, *torch.autograd.grad(out, leaves, grad)]
    expected = F.conv2d(*leaves, padding=1)
    for a, b in zip(found, [expected, *torch.autograd.grad(expected, leaves, grad)], strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4 * float(b.detach().abs().max()))


@pytest.mark.parametrize("needs", [(True, False), (False, True)])
def test_only_gradients_that_are_needed(needs: tuple[bool, bool]) -> None:
    x, weight, bias, grad = inputs(1, 16, 16, 6, 6)
    leaves = [t.requires_grad_(need) for t, need in zip((x, weight), needs, strict=True)]
    ops.winograd_conv(*leaves, bias).backward(grad)
    for leaf, need in zip(leaves, needs, strict=True):
        assert (leaf.grad is not None) == need


def test_without_images() -> None:
    x, weight, bias, _ = inputs(0, 16, 32, 6, 6)
    x.requires_grad_()
    weight.requires_grad_()
    out = ops.winograd_conv(x, weight, bias)
    assert out.shape == (0, 32, 6, 6)
    out.sum().backward()
    assert weight.grad is not None and not weight.grad.any()


def test_a_number_that_is_not_finite_stays_in_its_tiles() -> None:
    x, weight, _, _ = inputs(1, 16, 16, 16, 16)
    expected = ops.winograd_conv(x, weight)
    x[0, 3, 9, 9] = torch.inf  # in the third tile of each axis, read by no other
    out = ops.winograd_conv(x, weight)
    finite = out.isfinite().all(1)[0]
    assert not finite[8:11, 8:11].any()
    inside = torch.zeros(16, 16, dtype=torch.bool)
    inside[8:12, 8:12] = True
    assert finite[~inside].all()
    torch.testing.assert_close(out[0][:, ~inside], expected[0][:, ~inside], rtol=0, atol=0)


@pytest.mark.parametrize("case", ["channels", "double", "autocast"])
def test_other_tensors_are_convolved_by_torch(case: str) -> None:
    x, weight, bias, _ = inputs(1, 24 if case == "channels" else 16, 16, 6, 6)
    if case == "double":
        x, weight, bias = x.double(), weight.double(), bias.double()
    with torch.autocast("cpu", torch.bfloat16, enabled=case == "autocast"):
        out, expected = ops.winograd_conv(x, weight, bias), F.conv2d(x, weight, bias, padding=1)
    assert out.dtype == expected.dtype and torch.equal(out, expected)


def test_arguments_are_checked() -> None:
    x, weight, bias, grad = inputs(1, 16, 16, 6, 6)
    with pytest.raises(ValueError, match="x and weight must be"):
        ops.winograd_conv(x, weight[:, :8])
    with pytest.raises(ValueError, match="weight must be float32"):
        native("winograd_conv")(x, torch.zeros(36, 8, 16), None)
    with pytest.raises(ValueError, match="weight must be float32"):
        native("winograd_conv")(x, torch.tensor(1.0), None)
    with pytest.raises(ValueError, match="bias must be"):
        native("winograd_conv")(x, torch.zeros(36, 16, 16), bias[:3])
    with pytest.raises(ValueError, match="a multiple of 16"):
        native("winograd_weight_grad")(x[:, :9], grad)
    with pytest.raises(ValueError, match="grad must have the images"):
        native("winograd_weight_grad")(x, grad[..., :3])
