"""Parameters of equal settings in one group, against MMEngine's group for each parameter."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from mmengine.optim import DefaultOptimWrapperConstructor, LinearLR, OptimWrapper
from torch import nn

from scripts.runtime import schedules
from scripts.runtime.parameter_groups import MergedGroupsConstructor, one_by_one, regrouped
from scripts.runtime.training_state import restore_optimizer, use_configured_options

RULES = dict(
    img_backbone=dict(lr_mult=0.1),
    sampling_offset=dict(lr_mult=0.1),
    frozen_rate=dict(lr_mult=0.0, decay_mult=0.0),
)


def make_model() -> nn.Module:
    torch.manual_seed(0)
    return nn.ModuleDict(
        dict(
            head=nn.Linear(3, 4),
            img_backbone=nn.Sequential(nn.Linear(4, 5), nn.BatchNorm1d(5)),
            sampling_offset=nn.Linear(5, 3),
            frozen_rate=nn.Linear(3, 2, bias=False),
            norm=nn.LayerNorm(2),
        )
    )


def build(
    kind: type, model: nn.Module, rules: dict[str, Any] = RULES, **options: Any
) -> OptimWrapper:
    optimizer = dict(type="AdamW", lr=1e-2, weight_decay=0.1, **options)
    config = dict(type="OptimWrapper", optimizer=optimizer)
    paramwise = dict(custom_keys=copy.deepcopy(rules), norm_decay_mult=0.0)
    wrapper: OptimWrapper = kind(config, paramwise)(model)
    return wrapper


def settings_by_name(model: nn.Module, wrapper: OptimWrapper) -> dict[str, tuple[float, float]]:
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    return {
        names[id(parameter)]: (group["lr"], group["weight_decay"])
        for group in wrapper.optimizer.param_groups
        for parameter in group["params"]
    }


def step(model: nn.Module, wrapper: OptimWrapper, number: int) -> None:
    rng = torch.Generator().manual_seed(number)
    for parameter in model.parameters():
        parameter.grad = torch.randn(parameter.shape, generator=rng)
    wrapper.optimizer.step()


def content_of(wrapper: OptimWrapper, configured: Any, scheduler: Any) -> dict[str, Any]:
    """Return their content in a checkpoint, as the Runner gathers it."""
    return dict(
        optimizer=copy.deepcopy(wrapper.state_dict()),
        param_schedulers=[copy.deepcopy(scheduler.state_dict())],
        schedule=dict(options=configured, settings=[schedules.settings(scheduler)]),
    )


def start(kind: type, rules: dict[str, Any] = RULES) -> tuple[Any, OptimWrapper, Any, Any]:
    model = make_model()
    wrapper = build(kind, model, rules, fused=False)
    configured = copy.deepcopy(schedules.group_options(wrapper))
    scheduler = LinearLR(wrapper, start_factor=0.2, begin=0, end=6, by_epoch=False)
    return model, wrapper, configured, scheduler


def test_every_parameter_keeps_its_settings_and_its_steps() -> None:
    results = []
    for kind in (DefaultOptimWrapperConstructor, MergedGroupsConstructor):
        model, wrapper, _, scheduler = start(kind)
        found = [settings_by_name(model, wrapper)]
        for number in range(3):
            step(model, wrapper, number)
            scheduler.step()
            found.append(settings_by_name(model, wrapper))
        results.append((found, model.state_dict(), len(wrapper.optimizer.param_groups)))
    (expected, weights, many), (found, own_weights, few) = results
    assert found == expected
    assert all(torch.equal(own_weights[name], value) for name, value in weights.items())
    # head; backbone and sampling offset; the norm in the backbone is under its rule; frozen; norm
    assert (many, few) == (11, 4)


def test_checkpoints_are_those_of_a_group_a_parameter() -> None:
    contents = []
    for kind in (DefaultOptimWrapperConstructor, MergedGroupsConstructor):
        model, wrapper, configured, scheduler = start(kind)
        step(model, wrapper, 0)
        scheduler.step()
        content = content_of(wrapper, configured, scheduler)
        one_by_one(content, getattr(wrapper, "group_members", None))
        contents.append(content)
    old, new = contents
    assert list(old["optimizer"]["state"]) == list(new["optimizer"]["state"])
    for index, state in old["optimizer"]["state"].items():
        for name, value in state.items():
            assert torch.equal(new["optimizer"]["state"][index][name], value)
    assert new["optimizer"]["param_groups"] == old["optimizer"]["param_groups"]
    assert new["schedule"] == old["schedule"]
    for key in ("_last_value", "base_values", "last_step"):
        assert new["param_schedulers"][0][key] == old["param_schedulers"][0][key]


@pytest.mark.parametrize("kind", [DefaultOptimWrapperConstructor, MergedGroupsConstructor])
def test_checkpoints_of_before_resume(kind: type) -> None:
    """They have a group per parameter; merged groups continue with the same steps."""
    model, wrapper, configured, scheduler = start(DefaultOptimWrapperConstructor)
    for number in range(3):
        step(model, wrapper, number)
        scheduler.step()
    stored, weights = content_of(wrapper, configured, scheduler), copy.deepcopy(model.state_dict())
    for number in range(3, 6):
        step(model, wrapper, number)
        scheduler.step()

    other, own, own_configured, own_scheduler = start(kind)
    other.load_state_dict(weights)
    before = schedules.group_options(own)
    found = regrouped(stored, getattr(own, "group_members", None), own_configured)
    restore_optimizer(own, found["optimizer"], "a file")
    assert use_configured_options(own, own_configured, found["schedule"]["options"]) == []
    assert schedules.restore(
        [own_scheduler], found["param_schedulers"], found["schedule"]["settings"], wrapper=own,
        initial=before, place_is_kept=True, epoch=0, iteration=3, epoch_length=6,
    )  # fmt: skip
    for number in range(3, 6):
        step(other, own, number)
        own_scheduler.step()
    assert settings_by_name(other, own) == settings_by_name(model, wrapper)
    for name, value in model.state_dict().items():
        assert torch.equal(other.state_dict()[name], value), name


def test_rule_that_has_changed_for_some_of_a_group_is_noticed() -> None:
    model, wrapper, configured, scheduler = start(MergedGroupsConstructor)
    step(model, wrapper, 0)
    stored = content_of(wrapper, configured, scheduler)
    one_by_one(stored, wrapper.group_members)
    rules = {key: rule for key, rule in RULES.items() if key != "sampling_offset"}
    model, wrapper, configured, scheduler = start(MergedGroupsConstructor, rules)
    found = regrouped(stored, wrapper.group_members, configured)
    restore_optimizer(wrapper, found["optimizer"], "a file")
    changed = use_configured_options(wrapper, configured, found["schedule"]["options"])
    assert any(line.startswith("lr 0.001") and "0.01 now" in line for line in changed), changed
    offset = settings_by_name(model, wrapper)["sampling_offset.weight"]
    assert offset == settings_by_name(model, wrapper)["head.weight"]


def test_other_checkpoints_stay_as_they_are() -> None:
    _, wrapper, configured, _ = start(MergedGroupsConstructor)
    for stored in (
        {},
        dict(optimizer=None),
        dict(optimizer=dict(state={}, param_groups=[dict(params=[0, 1])])),
        dict(optimizer=dict(state={}, param_groups=[3] * 11)),
    ):
        assert regrouped(stored, wrapper.group_members, configured) == stored
        assert regrouped(stored, None, configured) == stored


def test_fused_unless_a_device_or_the_config_forbids_it() -> None:
    model = make_model()
    assert build(MergedGroupsConstructor, model).optimizer.defaults["fused"]
    meta = make_model().to("meta")
    assert not build(MergedGroupsConstructor, meta).optimizer.defaults.get("fused")
    constructor = MergedGroupsConstructor(
        dict(optimizer=dict(type="AdamW", lr=1e-2, foreach=False)), dict(custom_keys={})
    )
    constructor(model)
    assert "fused" not in constructor.optimizer_cfg


def test_a_checkpoint_does_not_decide_how_steps_are_computed() -> None:
    _, wrapper, configured, scheduler = start(MergedGroupsConstructor)
    stored = content_of(wrapper, configured, scheduler)
    for group in stored["optimizer"]["param_groups"]:
        group.update(fused=True, foreach=True)
    for options in stored["schedule"]["options"]:
        options.update(fused=True)
    restore_optimizer(wrapper, stored["optimizer"], "a file")
    assert all(not group["fused"] for group in wrapper.optimizer.param_groups)
    assert use_configured_options(wrapper, configured, stored["schedule"]["options"]) == []
