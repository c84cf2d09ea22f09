"""Steps that the optimiser wrappers skip; whole trainings are in test_exact_resume."""

from __future__ import annotations

import functools
from typing import Any

import pytest
import torch
from mmengine.optim.optimizer import amp_optimizer_wrapper
from torch import nn

from scripts.runtime.finite_steps import FiniteAmpOptimWrapper, FiniteOptimWrapper


def wrap(kind: str, model: nn.Module, monkeypatch: pytest.MonkeyPatch, **kwargs: Any) -> Any:
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1)
    if kind == "float32":
        return FiniteOptimWrapper(optimizer=optimizer, **kwargs)
    # MMEngine refuses machines without a GPU; torch's scaler works on the CPU as well.
    monkeypatch.setattr(amp_optimizer_wrapper, "is_cuda_available", lambda: True)
    scaler = functools.partial(torch.amp.GradScaler, "cpu")
    monkeypatch.setattr(amp_optimizer_wrapper, "GradScaler", scaler)
    return FiniteAmpOptimWrapper(optimizer=optimizer, dtype="bfloat16", **kwargs)


def moved(model: nn.Linear, wrapper: Any, factor: float) -> bool:
    """Make a step with the loss `factor * sum(outputs)`; return whether a weight changed."""
    before = model.weight.detach().clone()
    wrapper.update_params(factor * model(torch.ones(1, 3)).sum())
    assert bool(model.weight.isfinite().all())
    return not torch.equal(model.weight, before)


@pytest.mark.parametrize("clip_grad", [None, dict(max_norm=1.0)], ids=["whole", "clipped"])
@pytest.mark.parametrize("kind", ["float32", "mixed"])
def test_a_bad_step_changes_nothing(
    kind: str, clip_grad: dict | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = nn.Linear(3, 1)
    wrapper = wrap(kind, model, monkeypatch, clip_grad=clip_grad)
    assert moved(model, wrapper, 1.0) and wrapper.skipped is False
    state = {k: v.clone() for k, v in wrapper.optimizer.state[model.weight].items()}
    for bad in (float("nan"), float("inf")):
        assert not moved(model, wrapper, bad) and wrapper.skipped is True
    for key, value in wrapper.optimizer.state[model.weight].items():
        assert torch.equal(value, state[key])
    assert moved(model, wrapper, 1.0) and wrapper.skipped is False


def test_a_gradient_norm_that_overflows_is_a_bad_step(monkeypatch: pytest.MonkeyPatch) -> None:
    """The entries are finite, but clipping by an infinite norm would make them zero."""
    model = nn.Linear(3, 1)
    wrapper = wrap("float32", model, monkeypatch, clip_grad=dict(max_norm=1.0))
    nn.init.zeros_(model.weight)
    nn.init.zeros_(model.bias)
    assert not moved(model, wrapper, 1e30) and wrapper.skipped is True


def test_the_loss_scale_comes_down_before_a_step_counts_as_bad(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model = nn.Linear(3, 1)
    nn.init.constant_(model.weight, 1e-30)
    nn.init.zeros_(model.bias)
    wrapper = wrap("mixed", model, monkeypatch, clip_grad=None)
    assert not moved(model, wrapper, 1e35)  # 2^16 times that is no float32
    assert wrapper.skipped is False and wrapper.loss_scaler.get_scale() == 2**15
    while not moved(model, wrapper, 1e35):
        assert wrapper.skipped is False
    assert 2**10 < wrapper.loss_scaler.get_scale() < 2**15

    wrapper.loss_scaler = torch.amp.GradScaler("cpu", init_scale=0.5)
    model.weight.register_hook(lambda gradient: gradient * float("nan"))
    assert not moved(model, wrapper, 1.0) and wrapper.skipped is True
    assert wrapper.bad_parameter is model.weight


def test_accumulated_gradients_are_judged_together(monkeypatch: pytest.MonkeyPatch) -> None:
    model = nn.Linear(3, 1)
    wrapper = wrap("float32", model, monkeypatch)
    before = model.weight.detach().clone()
    for first, is_bad in ((float("nan"), True), (1.0, False)):
        for factor in (first, 1.0):
            wrapper.backward(factor * model(torch.ones(1, 3)).sum())
        wrapper.step()
        wrapper.zero_grad()
        assert wrapper.skipped is is_bad and wrapper.loss_was_finite is not is_bad
        assert torch.equal(model.weight, before) is is_bad
