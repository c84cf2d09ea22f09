"""Numbers below the normal range, which are zeros in native tasks on the CPU."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from models import ops

TINY = torch.finfo(torch.float32).tiny
SUBNORMAL = 1e-40


def torch_keeps_subnormals() -> bool:
    """Return whether torch's own threads, this one included, compute with such numbers."""
    halves = torch.full((1 << 17,), SUBNORMAL) * 0.5  # enough numbers for two threads
    return bool((halves != 0).all())


def rows_apart() -> list[Tensor]:
    """Return inputs of the attention: 32 near queries, and 32 that are 76 to 90 m away from them.

    The weight of a key at d metres is exp(-d). Its products with gradients of 1e-3 are subnormal
    from about 80 m. All are in one block, so that none is skipped.
    """
    generator = torch.Generator().manual_seed(0)
    query, key, value = (torch.randn(1, 2, 64, 8, generator=generator) for _ in range(3))
    centres = torch.zeros(1, 64, 3)
    centres[0, 32:, 0] = torch.linspace(76, 90, 32)
    return [1e-3 * query, key, value, torch.ones(1, 2, 64), centres]


def attend(function: Callable[..., Tensor], inputs: list[Tensor]) -> list[Tensor]:
    leaves = [x.detach().requires_grad_() for x in inputs[:4]]
    out = function(*leaves, inputs[4])
    upstream = torch.zeros_like(out)
    upstream[:, :, :32] = 1e-3  # the far keys get gradients of the near queries only
    return [out.detach(), *torch.autograd.grad(out, leaves, upstream)]


def test_attention_equals_its_reference_where_weights_are_subnormal() -> None:
    inputs = rows_apart()
    found = attend(ops.distance_attention, inputs)
    expected = attend(ops.distance_attention_reference, [x.double() for x in inputs])
    reached = [(0 < x.abs()) & (x.abs() < TINY) for x in expected]
    assert any(bool(part.any()) for part in reached), "no number of this case is subnormal"
    for own, other in zip(found, expected, strict=True):
        torch.testing.assert_close(own.double(), other, rtol=0, atol=1e-6)
        assert not bool(((0 < own.abs()) & (own.abs() < TINY)).any())


@pytest.mark.parametrize("threads", [1, 2])
def test_state_of_the_caller_stays(at_threads: Callable[..., Any], threads: int) -> None:
    inputs = rows_apart()
    inputs[:4] = [x.expand(2, *x.shape[1:]) for x in inputs[:4]]
    inputs[4] = inputs[4].expand(2, -1, -1)
    assert at_threads(threads, torch_keeps_subnormals)
    at_threads(threads, attend, ops.distance_attention, inputs)
    assert at_threads(threads, torch_keeps_subnormals)
    if torch.set_flush_denormal(True):
        try:
            attend(ops.distance_attention, inputs)
            assert float(torch.tensor(SUBNORMAL) * 0.5) == 0
        finally:
            torch.set_flush_denormal(False)


@pytest.mark.parametrize("switch", ["", "OPUS_DISABLE_AVX512", "OPUS_DISABLE_AVX2"])
def test_maps_of_16_bits_keep_their_subnormal_numbers(
    switch: str, run_in_new_process: Callable[..., None]
) -> None:
    """Numbers below 6.1e-5 are subnormal in 16 bits, but not in the 32 of the computation."""
    code = """
import torch
from models.ops import multi_view_sampling
maps = torch.linspace(-6e-5, 6e-5, 40).half().expand(1, 1, 4, 6, 40).permute(0, 1, 4, 2, 3)
points = torch.zeros(1, 1, 1, 1, 3)
camera = torch.tensor([[1.0, 0, 0, 20], [0, 1, 0, 12], [0, 0, 1, 1], [0, 0, 0, 1]])
weights = torch.ones(1, 1, 1, 1, 1)
out = multi_view_sampling([maps], points, camera[None, None], weights, (32, 48), 1)
torch.testing.assert_close(out.flatten(), maps[0, 0, :, 0, 0].float(), rtol=1e-5, atol=0)
"""
    run_in_new_process(code, **({switch: "1"} if switch else {}))
