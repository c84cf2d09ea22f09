from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from models.ops import adaptive_mixing, adaptive_mixing_reference

BOTH = [adaptive_mixing, adaptive_mixing_reference]


def make_inputs(
    n: int = 5, s_in: int = 6, s_out: int = 7, c: int = 8, dtype: torch.dtype = torch.float64,
    seed: int = 0,
) -> tuple[Tensor, Tensor, int]:  # fmt: skip
    generator = torch.Generator().manual_seed(seed)
    sampled = torch.randn(n, s_in, c, generator=generator, dtype=torch.float64)
    parameters = torch.randn(n, c * c + s_out * s_in, generator=generator, dtype=torch.float64)
    return sampled.to(dtype), parameters.to(dtype), s_out


def with_gradients(
    function: Callable[..., Tensor], sampled: Tensor, parameters: Tensor, out_points: int
) -> list[Tensor]:
    leaves = [x.detach().requires_grad_() for x in (sampled, parameters)]
    out = function(*leaves, out_points)
    generator = torch.Generator().manual_seed(1)
    grad = torch.randn(out.shape, generator=generator, dtype=torch.float64).to(out)
    return [out.detach(), *torch.autograd.grad(out, leaves, grad)]


def assert_close_to_reference(
    inputs: tuple[Tensor, Tensor, int], tolerance: float, device: str = "cpu"
) -> None:
    """Compare with the reference in double precision; errors relative to the largest number."""
    sampled, parameters, out_points = inputs
    there = (sampled.to(device), parameters.to(device), out_points)
    ours = [x.cpu() for x in with_gradients(adaptive_mixing, *there)]
    wide = (sampled.double(), parameters.double(), out_points)
    for a, b in zip(ours, with_gradients(adaptive_mixing_reference, *wide), strict=True):
        assert a.shape == b.shape and a.dtype == sampled.dtype
        scale = max(1.0, float(b.abs().max()) if b.numel() else 0.0)
        torch.testing.assert_close(a.double(), b, rtol=0, atol=tolerance * scale)


@pytest.mark.parametrize("function", BOTH)
def test_agrees_with_the_definition(function: Callable[..., Tensor]) -> None:
    sampled, parameters, s_out = make_inputs(n=2, s_in=3, s_out=4, c=2)
    out = function(sampled, parameters, s_out)
    for i in range(2):
        m, s = parameters[i, :4].view(2, 2), parameters[i, 4:].view(4, 3)
        x = sampled[i] @ m
        x = ((x - x.mean()) / (x.var(unbiased=False) + 1e-5).sqrt()).relu()
        x = s @ x
        x = ((x - x.mean()) / (x.var(unbiased=False) + 1e-5).sqrt()).relu()
        torch.testing.assert_close(out[i], x)


@given(data=st.data())
def test_native_equals_reference(data: Any) -> None:
    """Include sizes that are no whole number of vectors or tiles."""
    size = st.sampled_from([1, 2, 5, 8, 16, 33])
    inputs = make_inputs(
        data.draw(st.sampled_from([0, 1, 3, 40])), data.draw(size), data.draw(size),
        data.draw(st.sampled_from([2, 3, 4, 16, 31])), seed=data.draw(st.integers(0, 2**31)),
    )  # fmt: skip
    assert_close_to_reference(inputs, 1e-10)


@pytest.mark.parametrize(
    ("dtype", "tolerance"), [(torch.float32, 2e-5), (torch.float16, 5e-3), (torch.bfloat16, 4e-2)]
)
@pytest.mark.parametrize("c", [64, 13])
def test_other_precisions(dtype: torch.dtype, tolerance: float, c: int, device: str) -> None:
    for s_in, s_out in ((32, 32), (18, 5)):
        assert_close_to_reference(make_inputs(12, s_in, s_out, c, dtype), tolerance, device)


@pytest.mark.parametrize(
    ("n", "s_in", "s_out", "c"),
    [(0, 4, 4, 4), (1, 1, 1, 2), (3, 4, 7, 4), (2, 36, 3, 20), (2, 5, 33, 12), (2, 64, 128, 64)],
)
def test_sizes_in_single_precision(n: int, s_in: int, s_out: int, c: int, device: str) -> None:
    """Whole and partial quads, fewer and more tiles than threads, too much for shared memory."""
    assert_close_to_reference(make_inputs(n, s_in, s_out, c, torch.float32), 5e-5, device)


def test_gradcheck() -> None:
    sampled, parameters, s_out = make_inputs(2, 3, 4, 5)
    leaves = (sampled.requires_grad_(), parameters.requires_grad_())
    assert torch.autograd.gradcheck(lambda x, p: adaptive_mixing(x, p, s_out), leaves)


def test_rows_at_a_distance(device: str) -> None:
    """Use one group of the decoder's [n, G, S, c], and parameters of a wider matrix."""
    sampled, parameters, s_out = make_inputs(6, s_in=8, dtype=torch.float32)
    sampled, parameters = sampled.to(device), parameters.to(device)
    expected = with_gradients(adaptive_mixing, sampled, parameters, s_out)
    groups = torch.stack([torch.zeros_like(sampled), sampled], 1)
    wide, shifted = (torch.zeros(6, parameters.shape[1] + 4).to(device) for _ in range(2))
    wide[:, :-4], shifted[:, 1:-3] = parameters, parameters
    turned = sampled.transpose(1, 2).contiguous().transpose(1, 2)
    for x, p in (
        (groups[:, 1], wide[:, :-4]),
        (turned, parameters.t().contiguous().t()),
        (sampled, shifted[:, 1:-3]),  # four numbers start at no multiple of their size
    ):
        assert not (x.is_contiguous() and p.is_contiguous())
        for a, b in zip(with_gradients(adaptive_mixing, x, p, s_out), expected, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5)


def test_gradients_at_a_distance(device: str) -> None:
    """Use gradients of one group of stacked outputs [n, G, S, c], and of a sum."""
    sampled, parameters, s_out = make_inputs(6, s_in=8, dtype=torch.float32)
    leaves = [x.to(device).requires_grad_() for x in (sampled, parameters)]
    out = adaptive_mixing(*leaves, s_out)
    both = torch.randn(6, 2, *out.shape[1:]).to(device)
    turned = torch.randn(6, out.shape[2], s_out).to(device).transpose(1, 2)
    for grad in (both[:, 1], turned, torch.ones(1, 1, 1, device=device).expand_as(out)):
        assert not grad.is_contiguous()
        apart, dense = (
            torch.autograd.grad(out, leaves, g, retain_graph=True)
            for g in (grad, grad.contiguous())
        )
        for a, b in zip(apart, dense, strict=True):
            assert torch.equal(a, b)


def test_nan_stays_in_its_group(device: str) -> None:
    sampled, parameters, s_out = make_inputs(4, s_in=8, dtype=torch.float32)
    sampled[1, 0, 0] = math.nan
    parameters[2, 3] = math.inf
    out = adaptive_mixing(sampled.to(device), parameters.to(device), s_out).cpu()
    assert out[1].isnan().all() and out[2].isnan().all()
    expected = adaptive_mixing_reference(sampled, parameters, s_out)
    torch.testing.assert_close(out, expected, rtol=1e-5, atol=1e-5, equal_nan=True)


def test_constant_features(device: str) -> None:
    """Their deviation is zero, so that the layer norm's epsilon matters."""
    sampled, parameters, s_out = make_inputs(3, s_in=8, dtype=torch.float32)
    assert_close_to_reference((torch.zeros_like(sampled), parameters, s_out), 2e-5, device)


def test_threads_change_nothing(at_threads: Callable[..., Any]) -> None:
    inputs = make_inputs(100, 8, 8, 16, torch.float32)
    one, two = (at_threads(n, with_gradients, adaptive_mixing, *inputs) for n in (1, 2))
    for a, b in zip(one, two, strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("switch", ["OPUS_DISABLE_AVX512", "OPUS_DISABLE_AVX2"])
def test_other_instruction_sets(
    switch: str, run_in_new_process: Callable[..., None], tmp_path: Path
) -> None:
    """Results agree to rounding; the choice is made once per process."""
    for dtype, tolerance in ((torch.float32, 5e-5), (torch.float64, 1e-11)):
        inputs = make_inputs(20, 18, 33, 20, dtype)
        torch.save([inputs, with_gradients(adaptive_mixing, *inputs)], tmp_path / "x")
        code = f"""
import torch
from models.ops import adaptive_mixing
(*leaves, out_points), expected = torch.load({str(tmp_path / "x")!r})
out = adaptive_mixing(*(x.requires_grad_() for x in leaves), out_points)
grad = torch.randn(out.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
for a, b in zip([out, *torch.autograd.grad(out, leaves, grad.to(out))], expected):
    scale = max(1.0, float(b.abs().max()))
    torch.testing.assert_close(a, b, rtol=0, atol={tolerance} * scale)
"""
        run_in_new_process(code, **{switch: "1"})


def test_bad_arguments() -> None:
    sampled, parameters, s_out = make_inputs()
    for function in BOTH:
        for args, message in (
            ((sampled[0], parameters, s_out), r"sampled must be .* \[n, S_in, c\], got"),
            ((sampled.int(), parameters, s_out), "sampled must be float32"),
            ((sampled, parameters[:, 1:], s_out), r"parameters must be .*\[5, 106\], got .*105"),
            ((sampled, parameters.float(), s_out), "parameters must be torch.float64"),
            ((sampled, parameters, 0), "out_points must be positive, got 0"),
        ):
            with pytest.raises(ValueError, match=message):
                function(*args)


def test_opcheck() -> None:
    sampled, parameters, s_out = make_inputs(dtype=torch.float32)
    leaves = (sampled.requires_grad_(), parameters.requires_grad_())
    torch.library.opcheck(torch.ops.opus.adaptive_mixing.default, (*leaves, s_out))
    torch.library.opcheck(
        torch.ops.opus.adaptive_mixing_backward.default,
        (torch.randn(5, s_out, 8), sampled.detach(), parameters.detach(), s_out),
    )
