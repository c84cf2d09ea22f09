from __future__ import annotations

import math
import resource
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from models.ops import (
    attention_order,
    distance_attention,
    distance_attention_reference,
)

BOTH = [distance_attention, distance_attention_reference]


def make_inputs(
    B: int = 2, H: int = 3, Q: int = 20, d: int = 8, dtype: torch.dtype = torch.float64,
    extent_m: float = 10.0, seed: int = 0,
) -> list[Tensor]:  # fmt: skip
    """Return query, key, value, tau, centres."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    query, key, value = (normal(B, H, Q, d).to(dtype) for _ in range(3))
    tau = (2 * torch.rand(B, H, Q, generator=generator, dtype=torch.float64)).to(dtype)
    return [query, key, value, tau, (normal(B, Q, 3) * extent_m).to(dtype)]


def with_gradients(
    function: Callable[..., Tensor], inputs: list[Tensor], *args: Any
) -> list[Tensor]:
    leaves = [x.detach().requires_grad_() for x in inputs[:4]]
    out = function(*leaves, inputs[4], *args)
    generator = torch.Generator().manual_seed(1)
    grad = torch.randn(out.shape, generator=generator, dtype=torch.float64).to(out)
    return [out.detach(), *torch.autograd.grad(out, leaves, grad)]


def assert_close_to_reference(
    inputs: list[Tensor], tolerance: float, *args: Any, device: str = "cpu"
) -> None:
    """Compare with the reference in double precision; errors relative to the largest number."""
    there = [x.to(device) for x in inputs]
    ours = [x.cpu() for x in with_gradients(distance_attention, there, *args)]
    reference = with_gradients(distance_attention_reference, [x.double() for x in inputs], *args)
    for a, b in zip(ours, reference, strict=True):
        assert a.shape == b.shape and a.isfinite().all()
        scale = max(1.0, float(b.abs().max()) if b.numel() else 0.0)
        torch.testing.assert_close(a.double(), b, rtol=0, atol=tolerance * scale)


@pytest.mark.parametrize("function", BOTH)
def test_agrees_with_the_definition(function: Callable[..., Tensor]) -> None:
    query, key, value, tau, centres = make_inputs(B=1, H=2, Q=5, d=4)
    out = function(query, key, value, tau, centres)
    for h in range(2):
        for q in range(5):
            logits = [
                float(query[0, h, q] @ key[0, h, k]) / 2
                - float(tau[0, h, q]) * math.dist(centres[0, q], centres[0, k])
                for k in range(5)
            ]
            total = sum(math.exp(x) for x in logits)
            expected = sum(math.exp(logits[k]) / total * value[0, h, k] for k in range(5))
            torch.testing.assert_close(out[0, h, q], expected)


@given(data=st.data())
def test_native_equals_reference(data: Any) -> None:
    inputs = make_inputs(
        B=data.draw(st.integers(1, 2)), H=data.draw(st.integers(1, 3)),
        Q=data.draw(st.sampled_from([0, 1, 7, 63, 64, 65, 130])),
        d=data.draw(st.sampled_from([1, 4, 6, 32])),
        extent_m=data.draw(st.sampled_from([0.0, 0.1, 10.0, 1000.0])),
        seed=data.draw(st.integers(0, 2**31)),
    )  # fmt: skip
    inputs[3].mul_(data.draw(st.sampled_from([-0.1, 0.0, 1.0, 20.0])))
    dropout = data.draw(st.sampled_from([0.0, 0.3]))
    assert_close_to_reference(inputs, 1e-11, dropout, data.draw(st.integers(0, 2**62)))


@pytest.mark.parametrize(
    ("dtype", "tolerance"),
    [(torch.float32, 2e-5), (torch.float16, 4e-3), (torch.bfloat16, 3e-2)],
)
def test_other_precisions(dtype: torch.dtype, tolerance: float, device: str) -> None:
    for d in (6, 32):
        inputs = make_inputs(Q=150, d=d, dtype=dtype)
        assert_close_to_reference(inputs, tolerance, device=device)
        assert distance_attention(*(x.to(device) for x in inputs)).dtype == dtype


def test_dropout_in_single_precision(device: str) -> None:
    inputs = make_inputs(Q=150, dtype=torch.float32)
    assert_close_to_reference(inputs, 2e-5, 0.2, 2**40 + 3, device=device)


@pytest.mark.parametrize("queries", [0, 1, 8, 31, 32, 33, 129])
def test_tiles_in_single_precision(queries: int, device: str) -> None:
    inputs = make_inputs(B=1, H=2, Q=queries, d=5, dtype=torch.float32)
    assert_close_to_reference(inputs, 2e-5, device=device)


def make_far_queries(queries: int, dtype: torch.dtype) -> list[Tensor]:
    """The first head skips distant blocks; the second, which decays slowly, skips none."""
    inputs = make_inputs(B=1, H=2, Q=queries, d=8, dtype=dtype, extent_m=60.0)
    inputs[3][:, 1] *= 0.01
    return inputs


@pytest.mark.parametrize("sign", [1, -1])  # -1: attention that grows with distance
def test_what_is_skipped_does_not_show(sign: int) -> None:
    inputs = make_far_queries(700, torch.float64)
    inputs[3].mul_(sign)
    assert_close_to_reference(inputs, 1e-12)


@pytest.mark.parametrize("sign", [1, -1])
def test_what_is_skipped_in_single_precision_does_not_show(sign: int, device: str) -> None:
    inputs = make_far_queries(1030, torch.float32)  # enough that a GPU sorts them by position
    inputs[3].mul_(sign)
    assert_close_to_reference(inputs, 2e-5, device=device)


def test_gradcheck() -> None:
    *leaves, centres = make_inputs(B=1, H=2, Q=5, d=3)
    leaves = [x.requires_grad_() for x in leaves]
    for dropout in (0.0, 0.4):
        assert torch.autograd.gradcheck(
            lambda *x, p=dropout: distance_attention(*x, centres, p, 5), leaves
        )


def test_dropout_keeps_the_expected_part_and_repeats() -> None:
    inputs = make_inputs(B=1, H=2, Q=300, d=4, dtype=torch.float32, extent_m=0.0)
    query, key, value, tau, centres = inputs
    ones = torch.ones_like(value)
    args = (torch.zeros_like(query), key, ones, tau, centres)
    kept = distance_attention(*args, 0.25, 7)[..., 0] * 0.75  # uniform weights: the kept part
    assert abs(float(kept.mean()) - 0.75) < 0.005
    assert float(kept.std()) == pytest.approx(math.sqrt(0.25 * 0.75 / 300), rel=0.15)
    assert torch.equal(distance_attention(*args, 0.25, 7), distance_attention(*args, 0.25, 7))
    assert not torch.equal(distance_attention(*args, 0.25, 7), distance_attention(*args, 0.25, 8))


def test_strides(device: str) -> None:
    query, key, value, tau, centres = (x.to(device) for x in make_inputs(dtype=torch.float32))
    expected = with_gradients(distance_attention, [query, key, value, tau, centres])
    packed = torch.stack([query, key, value], 0).permute(1, 3, 0, 2, 4).contiguous()
    q, k, v = packed.permute(2, 0, 3, 1, 4)  # as the decoder gives them
    strided = [q, k, v, tau.transpose(1, 2).contiguous().transpose(1, 2),
               centres.flip(1).flip(1).transpose(0, 1).contiguous().transpose(0, 1)]  # fmt: skip
    for a, b in zip(with_gradients(distance_attention, strided), expected, strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
@pytest.mark.parametrize("which", range(5))
def test_what_is_not_finite_spreads_as_in_the_reference(which: int, bad: float) -> None:
    inputs = make_inputs(B=1, H=1, Q=150, extent_m=40.0)
    inputs[which].view(-1)[30] = bad
    ours, reference = (function(*inputs) for function in BOTH)
    torch.testing.assert_close(ours, reference, rtol=0, atol=1e-11, equal_nan=True)
    assert not reference.isfinite().all()


@pytest.mark.parametrize("bad", [math.nan, math.inf])
@pytest.mark.parametrize("which", range(5))
def test_what_is_not_finite_in_single_precision(which: int, bad: float, device: str) -> None:
    # Far apart, but where a weight that underflows would hide an infinite value.
    extent_m = 4.0 if which == 2 else 40.0
    inputs = make_inputs(B=1, H=2, Q=97, dtype=torch.float32, extent_m=extent_m)
    inputs[which].view(-1)[-1] = bad  # in a tile with one query
    ours = distance_attention(*(x.to(device) for x in inputs)).cpu()
    reference = distance_attention_reference(*inputs)
    torch.testing.assert_close(ours, reference, rtol=0, atol=2e-5, equal_nan=True)
    assert not reference.isfinite().all()


def test_huge_logits_do_not_overflow(device: str) -> None:
    inputs = make_inputs(B=1, Q=70, dtype=torch.float32)
    inputs[0].mul_(1e4)
    # logits of 50,000 have steps of 0.004, and gradients of the keys are multiples of the queries
    assert_close_to_reference(inputs, 5e-2, device=device)


def test_results_repeat(device: str) -> None:
    inputs = [x.to(device) for x in make_inputs(Q=150, dtype=torch.float32)]
    first, second = (with_gradients(distance_attention, inputs, 0.1, 3) for _ in range(2))
    for a, b in zip(first, second, strict=True):
        assert torch.equal(a, b)


def test_threads_change_nothing(at_threads: Callable[..., Any]) -> None:
    inputs = make_inputs(B=1, Q=300, dtype=torch.float32)
    one, two = (at_threads(n, with_gradients, distance_attention, inputs, 0.1, 3) for n in (1, 2))
    for a, b in zip(one, two, strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("switch", ["OPUS_DISABLE_AVX512", "OPUS_DISABLE_AVX2"])
def test_other_instruction_sets(
    switch: str, run_in_new_process: Callable[..., None], tmp_path: Path
) -> None:
    """Results agree to rounding; the choice is made once per process."""
    for dtype, tolerance in ((torch.float32, 2e-5), (torch.float64, 1e-11)):
        inputs = make_inputs(Q=150, d=12, dtype=dtype)
        torch.save([inputs, with_gradients(distance_attention, inputs, 0.2, 3)], tmp_path / "x")
        code = f"""
import torch
from models.ops import distance_attention
inputs, expected = torch.load({str(tmp_path / "x")!r})
leaves = [x.requires_grad_() for x in inputs[:4]]
out = distance_attention(*leaves, inputs[4], 0.2, 3)
grad = torch.randn(out.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
for a, b in zip([out, *torch.autograd.grad(out, leaves, grad.to(out))], expected):
    scale = max(1.0, float(b.abs().max()))
    torch.testing.assert_close(a, b, rtol=0, atol={tolerance} * scale)
"""
        run_in_new_process(code, **{switch: "1"})


def test_memory_grows_with_queries_alone() -> None:
    """4,000 queries of 8 heads: a single [8, Q, Q] tensor would take 512 MB."""
    inputs = make_inputs(B=1, H=8, Q=4000, d=4, dtype=torch.float32, extent_m=60.0)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with_gradients(distance_attention, inputs)
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    assert grown < 100_000  # KiB


@pytest.mark.cuda
def test_memory_of_a_gpu_grows_with_queries_alone() -> None:
    inputs = [
        x.cuda() for x in make_inputs(B=1, H=8, Q=4000, d=32, dtype=torch.float32, extent_m=60.0)
    ]
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    with_gradients(distance_attention, inputs)
    assert torch.cuda.max_memory_allocated() - before < 128 * 2**20  # one [8, Q, Q] takes 488 MiB


def test_bad_arguments() -> None:
    query, key, value, tau, centres = make_inputs()
    for function in BOTH:
        for args, message in (
            ((query[0], key, value, tau, centres), r"query must be .* \[B, H, Q, d\], got"),
            ((query.int(), key, value, tau, centres), "query must be float32"),
            ((query, key[:, :, 1:], value, tau, centres), r"key must be .*\[2, 3, 20, 8\]"),
            ((query, key, value.float(), tau, centres), "value must be torch.float64"),
            ((query, key, value, tau[:1], centres), r"tau must be \[2, 3, 20\], got \[1"),
            ((query, key, value, tau, centres[..., :2]), r"centres must be \[2, 20, 3\]"),
            ((query, key, value, tau, centres, 1.0), r"dropout_p must lie in \[0, 1\), got 1"),
        ):
            with pytest.raises(ValueError, match=message):
                function(*args)


def test_opcheck() -> None:
    *leaves, centres = make_inputs(B=1, H=2, Q=5, d=4, dtype=torch.float32)
    leaves = [x.requires_grad_() for x in leaves]
    extra = (0.1, torch.tensor([3]), torch.randperm(5)[None])
    torch.library.opcheck(torch.ops.opus.distance_attention.default, (*leaves, centres, *extra))
    torch.library.opcheck(torch.ops.opus.attention_order.default, (centres,))
    inputs = [x.detach() for x in (*leaves, centres)]
    out, log_sum = torch.ops.opus.distance_attention(*inputs, 0.0, None, None)
    torch.library.opcheck(
        torch.ops.opus.distance_attention_backward.default,
        (torch.randn(1, 2, 5, 4), *inputs, out, log_sum, 0.0, None, None),
    )


def test_samples_drop_by_seeds_of_their_own(device: str) -> None:
    """The dropout of a sample does not depend on its batch; a replayed graph reads new seeds."""
    inputs = [x.to(device) for x in make_inputs(B=3, Q=70, dtype=torch.float32)]
    seeds = torch.tensor([5, 2**62 + 1, 5], device=device)
    together = distance_attention(*inputs, 0.3, seeds)
    for b in range(3):
        alone = distance_attention(*(x[b : b + 1] for x in inputs), 0.3, int(seeds[b]))
        assert torch.equal(together[b : b + 1], alone)
    expected = distance_attention_reference(*inputs, 0.3, seeds)
    torch.testing.assert_close(together, expected, rtol=2e-5, atol=2e-5)
    seeds += 1
    assert not torch.equal(distance_attention(*inputs, 0.3, seeds), together)


def test_order_of_queries_does_not_show(device: str) -> None:
    inputs = make_far_queries(1030, torch.float32)
    order = attention_order(inputs[4].to(device))
    assert torch.equal(order.sort(1).values.cpu(), torch.arange(1030)[None])
    assert not torch.equal(order.cpu(), torch.arange(1030)[None])
    expected = distance_attention_reference(*inputs)
    on_device = [x.to(device) for x in inputs]
    for other in (order, order.flip(1), torch.randperm(1030)[None].to(device)):
        found = distance_attention(*on_device, order=other).cpu()
        torch.testing.assert_close(found, expected, rtol=2e-5, atol=2e-5)
        leaves = [x.clone().requires_grad_() for x in on_device[:4]]
        distance_attention(*leaves, on_device[4], order=other).square().sum().backward()
        own = [x.clone().requires_grad_() for x in on_device[:4]]
        distance_attention(*own, on_device[4]).square().sum().backward()
        for a, b in zip(leaves, own, strict=True):
            torch.testing.assert_close(a.grad, b.grad, rtol=1e-4, atol=1e-4)


def test_order_is_checked() -> None:
    inputs = make_inputs(B=1, H=1, Q=4, dtype=torch.float32)
    for order, message in (
        (torch.tensor([[0, 1, 2]]), r"order must be int64 \[1, 4\]"),
        (torch.tensor([[0, 1, 1, 3]]), "every query of a sample once"),
        (torch.tensor([[0, 1, 2, 4]]), "every query of a sample once"),
    ):
        with pytest.raises(ValueError, match=message):
            distance_attention(*inputs, order=order)
