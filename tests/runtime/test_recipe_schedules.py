"""Layer-wise learning rates, a one-cycle schedule, and evaluations of averaged weights."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from mmengine.hooks import Hook
from mmengine.optim import build_optim_wrapper
from mmengine.registry import HOOKS, PARAM_SCHEDULERS
from torch import nn

import scripts.runtime.register  # noqa: F401
from scripts.runtime import schedules
from scripts.runtime.checkpoint import read_checkpoint
from scripts.runtime.errors import ConfigError
from scripts.runtime.launch import Launch
from scripts.runtime.layer_decay import with_layer_decay
from scripts.runtime.runner import build_runner, prepare_config


class Net(nn.Module):
    """Network with an image backbone of 2 + 1 blocks."""

    def __init__(self) -> None:
        super().__init__()
        block = lambda: nn.ModuleDict(dict(conv1=nn.Linear(1, 1), bn1=nn.BatchNorm1d(1)))  # noqa: E731
        self.img_backbone = nn.ModuleDict(
            dict(
                conv1=nn.Linear(1, 1),
                layer1=nn.ModuleList([block(), block()]),
                layer2=nn.ModuleList([block()]),
            )
        )
        self.img_neck = nn.Linear(1, 1)
        self.head = nn.Linear(1, 1)


def rates_of(net: nn.Module, paramwise_cfg: dict[str, Any]) -> dict[str, float]:
    optimizer = dict(type="AdamW", lr=1.0, weight_decay=0.01)
    config = dict(optimizer=optimizer, paramwise_cfg=paramwise_cfg)
    names = {id(parameter): name for name, parameter in net.named_parameters()}
    written = with_layer_decay(config, list(names.values()))
    wrapper = build_optim_wrapper(net, dict(written, type="OptimWrapper"))
    return {
        names[id(parameter)]: group["lr"]
        for group in wrapper.optimizer.param_groups
        for parameter in group["params"]
    }


def test_rates_fall_from_the_last_block_to_the_first_layer() -> None:
    rules = dict(layer_decay=0.5, custom_keys=dict(img_backbone=dict(lr_mult=0.1)))
    rates = rates_of(Net(), rules)
    for name, depth in (("conv1", 0), ("layer1.0.conv1", 1), ("layer1.1.bn1", 2), ("layer2.0", 3)):
        for full, rate in rates.items():
            if full.startswith(f"img_backbone.{name}."):
                assert rate == pytest.approx(0.1 * 0.5 ** (3 - depth)), full
    assert rates["head.weight"] == rates["img_neck.bias"] == 1.0
    assert len(rates) == len(list(Net().parameters()))
    assert rules == dict(layer_decay=0.5, custom_keys=dict(img_backbone=dict(lr_mult=0.1)))


def test_each_parameter_keeps_its_own_rule() -> None:
    keys = {"img_backbone": dict(lr_mult=0.1), "bn1.weight": dict(lr_mult=2.0, decay_mult=0.0)}
    rates = rates_of(Net(), dict(layer_decay=0.5, custom_keys=keys))
    assert rates["img_backbone.layer1.0.conv1.weight"] == pytest.approx(0.1 * 0.25)
    # MMEngine takes the rule of the longest key, 'img_backbone'.
    assert rates["img_backbone.layer1.0.bn1.weight"] == pytest.approx(0.1 * 0.25)
    plain = rates_of(Net(), dict(layer_decay=1.0))
    assert set(plain.values()) == {1.0}


@pytest.mark.parametrize("decay", [0.0, 1.5, "half", True])
def test_a_decay_that_cannot_be_is_refused(decay: Any) -> None:
    with pytest.raises(ConfigError, match="layer_decay is"):
        rates_of(Net(), dict(layer_decay=decay))


def test_a_backbone_without_blocks_is_refused() -> None:
    with pytest.raises(ConfigError, match="needs an img_backbone with blocks"):
        rates_of(nn.ModuleDict(dict(head=nn.Linear(1, 1))), dict(layer_decay=0.5))


def optimizer() -> torch.optim.Optimizer:
    weights = [nn.Parameter(torch.zeros(1)) for _ in range(2)]
    groups = [dict(params=[weights[0]], lr=1.0), dict(params=[weights[1]], lr=0.1)]
    return torch.optim.SGD(groups, lr=1.0)


def rates(scheduler: Any, steps: int) -> list[list[float]]:
    found = []
    for _ in range(steps):
        found.append([group["lr"] for group in scheduler.optimizer.param_groups])
        scheduler.optimizer.step()
        scheduler.step()
    return found


def build(**options: Any) -> Any:
    config = dict(type="OneCycleByShareLR", peak_at=0.4, end_factor=0.01, **options)
    return PARAM_SCHEDULERS.build(config, default_args=dict(optimizer=optimizer()))


def test_one_cycle_by_hand() -> None:
    found = rates(build(end=11, by_epoch=False, start_factor=0.2), 11)
    assert [pair[0] for pair in found[:5]] == pytest.approx(
        [0.2 + 0.8 * (1 - math.cos(math.pi * i / 4)) / 2 for i in range(5)]
    )
    assert found[4][0] == 1.0  # 40 % of the ten steps from the first to the last
    assert found[7][0] == pytest.approx(0.505)
    assert found[10][0] == pytest.approx(0.01)
    for own, other in found:
        assert other == pytest.approx(0.1 * own)


def test_one_cycle_in_epochs_and_where_it_is_resumed() -> None:
    built = PARAM_SCHEDULERS.get("OneCycleByShareLR").build_iter_from_epoch(
        optimizer(), end=3, epoch_length=4
    )
    assert (built.end, built.by_epoch) == (12, False)
    whole = rates(build(end=12, by_epoch=False), 12)
    resumed = build(end=12, by_epoch=False)
    resumed.optimizer._global_step = 0
    schedules.replay([resumed], resumed.optimizer, schedules.group_options(resumed.optimizer),
                     epoch=1, iteration=5, epoch_length=4)  # fmt: skip
    for row, expected in zip(rates(resumed, 7), whole[5:], strict=True):
        assert row == pytest.approx(expected)


@pytest.mark.parametrize("option", ["peak_at", "start_factor", "end_factor"])
def test_a_share_that_cannot_be_is_refused(option: str) -> None:
    with pytest.raises(ConfigError, match=f"{option} is 1.5"):
        PARAM_SCHEDULERS.get("OneCycleByShareLR")(optimizer(), end=5, **{option: 1.5})


SEEN: dict[str, Any] = {}


@HOOKS.register_module()
class NoteWeights(Hook):
    """Record the weights after every step, and the evaluated weights."""

    priority = "VERY_LOW"

    def after_train_iter(self, runner: Any, *args: Any, **kwargs: Any) -> None:
        SEEN.setdefault("steps", []).append(runner.model.linear.weight.detach().clone())

    def before_val_iter(self, runner: Any, *args: Any, **kwargs: Any) -> None:
        SEEN["evaluated"] = runner.model.linear.weight.detach().clone()


def test_averaged_weights_are_evaluated_and_stored(config: Path, tmp_path: Path) -> None:
    SEEN.clear()
    options = dict(
        custom_hooks=[
            dict(type="EMAHook", ema_type="ExponentialMovingAverage", momentum=0.25),
            dict(type="NoteWeights"),
        ],
        max_epochs=1,
    )
    cfg = prepare_config(str(config), options, str(tmp_path / "run"))
    runner = build_runner(cfg, Launch())
    start = runner.model.linear.weight.detach().clone()
    runner.train()
    steps = SEEN["steps"]
    average = steps[0]  # MMEngine's average begins with the first step's weights
    for weights in steps[1:]:
        average = 0.75 * average + 0.25 * weights
    assert len(steps) == 6 and not torch.equal(start, steps[0])
    torch.testing.assert_close(SEEN["evaluated"], average)
    stored = read_checkpoint(tmp_path / "run" / "epoch_1.pth")
    torch.testing.assert_close(stored["state_dict"]["linear.weight"], average)
    torch.testing.assert_close(runner.model.linear.weight, steps[-1])
