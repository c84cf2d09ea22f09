from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from models.ops import sigmoid_focal_loss, sigmoid_focal_loss_reference

BOTH = [sigmoid_focal_loss, sigmoid_focal_loss_reference]


def with_gradient(
    function: Callable[..., Tensor], logits: Tensor, *args: Any
) -> tuple[Tensor, Tensor]:
    leaf = logits.detach().clone().requires_grad_()
    out = function(leaf, *args)
    return out.detach(), torch.autograd.grad(3 * out, leaf)[0]


@pytest.mark.parametrize("function", BOTH)
def test_agrees_with_the_definition(function: Callable[..., Tensor]) -> None:
    logits = torch.tensor([[0.5, -1.0, 2.0], [0.0, 3.0, -4.0]], dtype=torch.float64)
    weights, rows = [1.0, 2.0, 5.0], [1.0, 0.5]
    expected = 0.0
    for i, label in enumerate((2, 7)):
        for k in range(3):
            p = 1 / (1 + math.exp(-float(logits[i, k])))
            term = -0.3 * (1 - p) ** 1.5 * math.log(p)
            if k != label:
                term = -0.7 * p**1.5 * math.log(1 - p)
            expected += weights[k] * rows[i] * term
    out = function(
        logits, torch.tensor([2, 7]), torch.tensor(weights), torch.tensor(rows).double(), 1.5, 0.3
    )
    assert out.item() == pytest.approx(expected, rel=1e-12)


@given(data=st.data())
def test_native_equals_reference(data: Any) -> None:
    generator = torch.Generator().manual_seed(data.draw(st.integers(0, 2**31)))
    n, classes = data.draw(st.sampled_from([0, 1, 3, 700])), data.draw(st.integers(1, 20))
    dtype, tolerance = data.draw(st.sampled_from([(torch.float64, 1e-11), (torch.float32, 2e-5)]))
    scale = data.draw(st.sampled_from([0.1, 3.0, 40.0]))
    logits = (scale * torch.randn(n, classes, generator=generator)).to(dtype)
    labels = torch.randint(-2, classes + 2, (n,), generator=generator)
    weights = 5 * torch.rand(classes, generator=generator)
    rows = torch.rand(n, generator=generator).to(dtype) if data.draw(st.booleans()) else None
    gamma = data.draw(st.sampled_from([0.0, 1.5, 2.0]))
    ours, reference = (with_gradient(f, logits, labels, weights, rows, gamma, 0.25) for f in BOTH)
    for a, b in zip(ours, reference, strict=True):
        torch.testing.assert_close(a, b, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("with_rows", [True, False])
@pytest.mark.parametrize("n", [0, 1, 700])
def test_float32(n: int, with_rows: bool, device: str) -> None:
    logits, labels = 4 * torch.randn(17, n).t(), torch.randint(-1, 19, (n,))
    args = (labels, 5 * torch.rand(17), torch.rand(n) if with_rows else None, 1.5, 0.3)
    reference = with_gradient(sigmoid_focal_loss_reference, logits.double(), *args)
    there = [x.to(device) if isinstance(x, torch.Tensor) else x for x in (logits, *args)]
    ours = with_gradient(sigmoid_focal_loss, *there)
    for a, b in zip(ours, reference, strict=True):
        torch.testing.assert_close(a.cpu().double(), b, rtol=2e-5, atol=2e-6)
    assert torch.equal(with_gradient(sigmoid_focal_loss, *there)[0], ours[0])  # repeats


def test_gradcheck() -> None:
    logits = torch.randn(4, 11, dtype=torch.float64, requires_grad=True)
    labels, weights = torch.tensor([0, 10, 3, 11]), torch.rand(11)
    assert torch.autograd.gradcheck(lambda x: sigmoid_focal_loss(x, labels, weights), (logits,))


def test_extreme_logits_and_nan(device: str) -> None:
    logits = torch.tensor([[200.0, -200.0], [1e5, -1e5]], dtype=torch.float32, device=device)
    labels, weights = torch.tensor([1, 0], device=device), torch.ones(2, device=device)
    ours, reference = (with_gradient(function, logits, labels, weights) for function in BOTH)
    assert ours[0].item() == pytest.approx(reference[0].item())
    torch.testing.assert_close(ours[1], reference[1])
    logits[0, 0] = math.nan
    out, grad = with_gradient(sigmoid_focal_loss, logits, labels, weights)
    assert out.isnan() and grad[0, 0].isnan() and grad[1].isfinite().all()


def test_strides_and_threads(at_threads: Callable[..., Any]) -> None:
    logits, labels = torch.randn(17, 9000).t(), torch.randint(0, 18, (18000,))[::2]
    args = (sigmoid_focal_loss, logits, labels, torch.rand(17))
    one, two = (at_threads(n, with_gradient, *args) for n in (1, 2))
    assert torch.equal(one[0], two[0]) and torch.equal(one[1], two[1])
    reference = with_gradient(sigmoid_focal_loss_reference, logits, *args[2:])
    torch.testing.assert_close(one[0], reference[0], rtol=1e-4, atol=0)


def test_bad_arguments() -> None:
    logits, labels, weights = torch.rand(4, 3), torch.zeros(4, dtype=torch.int64), torch.ones(3)
    for function in BOTH:
        for args, message in (
            ((logits[0], labels, weights), r"logits must be .* \[n, K\], got"),
            ((logits, labels.int(), weights), r"labels must be int64 \[4\], got torch.int32"),
            ((logits, labels, weights[:2]), r"class_weights must be \[3\], got \[2\]"),
            ((logits, labels, weights, weights), r"row_weights must be \[4\], got \[3\]"),
        ):
            with pytest.raises(ValueError, match=message):
                function(*args)


def test_opcheck() -> None:
    logits, labels = torch.rand(4, 3, requires_grad=True), torch.tensor([0, 1, 2, 3])
    args = (labels, torch.ones(3), torch.rand(4), 2.0, 0.25)
    torch.library.opcheck(torch.ops.opus.sigmoid_focal_loss.default, (logits, *args))
    torch.library.opcheck(
        torch.ops.opus.sigmoid_focal_loss_backward.default,
        (torch.tensor(2.0), logits.detach(), *args),
    )
