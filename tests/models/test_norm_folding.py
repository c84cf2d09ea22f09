"""Norms that rest in training, and fast convolutions, change rounding alone."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from models.detectors.norm_folding import rest_norms, wake_norms
from models.layers import convolutions
from models.layers.convolutions import FastConv2d, RestingNorm2d, use_fast_convolutions
from tests.models.cases import HW, N, T


def varied(model: Any) -> Any:
    """The model with batch norms that matter."""
    generator = torch.Generator().manual_seed(0)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.running_mean, std=0.2, generator=generator)
            nn.init.uniform_(module.running_var, 0.5, 2.0, generator=generator)
            nn.init.uniform_(module.weight, 0.5, 1.5, generator=generator)
            nn.init.normal_(module.bias, std=0.2, generator=generator)
    return model


def maps_and_gradients(model: Any) -> dict[str, Tensor]:
    images = torch.randn(1, T * N, 3, *HW, generator=torch.Generator().manual_seed(1))
    model.zero_grad()
    levels = model.image_features(images.to(next(model.parameters()).dtype))
    sum(level.square().mean() for level in levels).backward()
    found = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    return found | {f"map {i}": level.detach() for i, level in enumerate(levels)}


def assert_alike(found: dict[str, Tensor], expected: dict[str, Tensor], tolerance: float) -> None:
    """Compare norms of differences: rounding moves single numbers across the border of a ReLU."""
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert (found[name] - value).norm() <= tolerance * value.norm(), name


def test_resting_norms_change_nothing(make_detector: Callable[..., Any]) -> None:
    model = varied(make_detector()).double().train()
    resting = [m for m in model.img_backbone.modules() if isinstance(m, RestingNorm2d)]
    norms = [m for m in model.img_backbone.modules() if isinstance(m, nn.BatchNorm2d)]
    assert resting == norms and all(norm.rests for norm in norms)
    found, keys = maps_and_gradients(model), set(model.state_dict())
    network = (model.img_backbone, model.img_neck)
    wake_norms(network)
    assert not any(isinstance(m, RestingNorm2d) for m in model.modules())
    expected = maps_and_gradients(model)
    assert any("bn" in name for name in expected) and keys == set(model.state_dict())
    assert_alike(found, expected, 1e-9)
    rest_norms(network)
    assert not any(isinstance(m, RestingNorm2d) for m in model.eval().modules())


def test_norms_that_learn_statistics_work_themselves() -> None:
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Conv2d(4, 4, 3))
    network.append(nn.BatchNorm2d(4))
    use_fast_convolutions(network)
    network.train()
    network[1].eval()
    rest_norms([network])
    assert isinstance(network[1], RestingNorm2d) and type(network[3]) is nn.BatchNorm2d
    x = torch.randn(2, 3, 16, 16)
    network[1].train()  # after all
    network(x)
    assert network[1].num_batches_tracked == network[3].num_batches_tracked == 1


def test_fast_convolutions_change_nothing(
    make_detector: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    model = varied(make_detector()).train()
    expected = maps_and_gradients(model)
    monkeypatch.setattr(convolutions, "_LEAST_CHANNELS", 16)
    monkeypatch.setattr(convolutions, "_LEAST_PIXELS", 1)
    calls: list[int] = []
    own = convolutions.ops.winograd_conv
    monkeypatch.setattr(
        convolutions.ops, "winograd_conv", lambda *args: (calls.append(1), own(*args))[1]
    )
    found = maps_and_gradients(model)
    fast = [m for m in model.modules() if isinstance(m, FastConv2d) and m.kernel_size == (3, 3)]
    assert 0 < len(calls) <= len(fast)
    assert_alike(found, expected, 0.02)
