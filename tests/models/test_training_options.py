"""Parameter updates of a training step, and options of the image network."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from mmengine.config import Config
from mmengine.optim import build_optim_wrapper
from torch import nn

from tests.models.cases import DETECTOR, HEAD, POINT_HEAD, make_batch, merge, with_lidar

ROOT = Path(__file__).parents[2]
VARIANTS: dict[str, dict[str, Any]] = dict(
    v1=dict(pts_bbox_head=POINT_HEAD),
    v2=dict(pts_bbox_head=HEAD),
    v1_fusion=with_lidar(POINT_HEAD),
    v2_fusion=with_lidar(HEAD),
)
FROZEN = ("img_backbone.conv1.", "img_backbone.bn1.", "img_backbone.layer1.")


def backbone(**changes: Any) -> dict[str, Any]:
    return dict(img_backbone=merge(DETECTOR["img_backbone"], **changes))


def losses_of(model: Any, batch: dict[str, Any]) -> torch.Tensor:
    losses = model(**model.data_preprocessor(batch, model.training), mode="loss")
    return torch.stack(list(losses.values())).sum()


@pytest.mark.parametrize("kind", VARIANTS)
def test_published_learning_rates(kind: str, make_detector: Callable[..., Any]) -> None:
    """The first step of Adam moves a parameter by its learning rate."""
    schedule = Config.fromfile(ROOT / "configs" / "_base_" / "schedules" / "adamw_100e.py")
    schedule.optim_wrapper.type = "OptimWrapper"
    schedule.optim_wrapper.optimizer.update(weight_decay=0.0, eps=1e-30)
    model = make_detector(**VARIANTS[kind]).train()
    for name, parameter in model.named_parameters():
        if name.endswith(("sampling_offset.weight", "parameter_generator.weight")):
            nn.init.normal_(parameter, std=0.01)  # they start at zero and would hold others back
    wrapper = build_optim_wrapper(model, schedule.optim_wrapper)
    before = {name: value.clone() for name, value in model.named_parameters()}
    model.train_step(make_batch(0, lidar=model.has_lidar), wrapper)
    for name, parameter in model.named_parameters():
        moved = (parameter - before[name]).detach().abs().max().item()
        slow = name.startswith("img_backbone.") or "sampling_offset" in name
        # V1's first layer has one point a query: its sampling points all lie in it
        still = name.startswith(FROZEN) or (
            kind.startswith("v1") and ".0.sampling.sampling_offset" in name
        )
        expected = 0.0 if still else 2e-5 if slow else 2e-4
        assert moved == pytest.approx(expected, rel=0.02), name


def test_batch_norm_rests_and_its_factors_learn(make_detector: Callable[..., Any]) -> None:
    model = make_detector().train()
    norms = {
        name: module
        for name, module in model.img_backbone.named_modules()
        if isinstance(module, nn.BatchNorm2d)
    }
    statistics = {name: module.running_mean.clone() for name, module in norms.items()}
    losses_of(model, make_batch(0)).backward()
    for name, module in norms.items():
        assert not module.training and torch.equal(module.running_mean, statistics[name]), name
        frozen = f"img_backbone.{name}.".startswith(FROZEN)
        assert module.weight.requires_grad != frozen, name
        assert (module.weight.grad is None) == frozen, name


def test_activation_checkpointing_changes_nothing_but_the_work(
    make_detector: Callable[..., Any],
) -> None:
    plain = make_detector(**backbone(with_cp=False)).train()
    saving = make_detector(**backbone(with_cp=True)).train()
    saving.load_state_dict(plain.state_dict())
    calls = dict(plain=0, saving=0)

    def count(which: str) -> Callable[..., None]:
        def hook(*_: Any) -> None:
            calls[which] += 1

        return hook

    for name, model in (("plain", plain), ("saving", saving)):
        model.img_backbone.layer2[1].conv1.register_forward_pre_hook(count(name))
    totals = [losses_of(model, make_batch(0)) for model in (plain, saving)]
    torch.testing.assert_close(totals[0], totals[1])
    for total in totals:
        total.backward()
    assert calls == dict(plain=1, saving=2)  # once more in the backward pass
    theirs = dict(saving.named_parameters())
    for name, parameter in plain.named_parameters():
        if parameter.requires_grad:
            torch.testing.assert_close(theirs[name].grad, parameter.grad, msg=name)


@pytest.mark.parametrize("kind", ["v1", "v2_fusion"])
def test_options_of_the_detector_serve_every_variant(
    kind: str, make_detector: Callable[..., Any]
) -> None:
    options = dict(stop_prev_grad=1, grid_mask=dict(type="GridMask", prob=1.0), streaming=True)
    model = make_detector(**VARIANTS[kind], **options).train()
    losses_of(model, make_batch(0, lidar=model.has_lidar)).backward()
    assert model.img_neck.lateral_convs[0].conv.weight.grad.any()
    batch = make_batch(0, lidar=model.has_lidar)
    with torch.no_grad():
        model.eval()
        points = [
            model(**model.data_preprocessor(batch, False), mode="tensor").points[-1]
            for _ in range(2)
        ]
    assert torch.equal(*points) and len(model.cache) == 2


def test_straight_pairing_is_an_option(make_detector: Callable[..., Any]) -> None:
    def head(pairing: str) -> dict[str, Any]:
        return merge(HEAD, decoder=HEAD["decoder"] | dict(level_pairing=pairing))

    published = make_detector(pts_bbox_head=head("published")).eval()
    straight = make_detector(pts_bbox_head=head("straight")).eval()
    straight.load_state_dict(published.state_dict(), strict=True)
    assert HEAD["decoder"].get("level_pairing", "published") == "published"
    data = published.data_preprocessor(make_batch(0), False)
    with torch.no_grad():
        a, b = (model(**data, mode="tensor").points[-1] for model in (published, straight))
    assert not torch.allclose(a, b)
