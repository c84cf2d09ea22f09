"""Learning rates of the published configs, by the optimiser and schedulers of train.py."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from mmengine.dataset import BaseDataset
from mmengine.hooks import ParamSchedulerHook
from mmengine.model import BaseModel
from mmengine.registry import DATASETS, MODELS
from torch import nn

from scripts.runtime.config import load_config
from scripts.runtime.fit import fit_config
from scripts.runtime.launch import Launch
from scripts.runtime.runner import OpusRunner

CONFIGS = Path(__file__).parents[2] / "configs"
NAME = "opusv2_nusc-occ3d/opusv2-t_r50_704x256_8f_nusc-occ3d_{}e.py"
TRAINING_SAMPLES = 28_130  # of nuScenes: 3,517 iterations of 8
ITERATIONS = 3517
# MODEL.md: the main group's rate by iteration, in a training of 100 epochs
PUBLISHED = {
    0: 6.66667e-5,
    250: 1.33333e-4,
    499: 1.99733e-4,
    500: 2e-4,
    3516: 2e-4,
    100_000: 1.63779e-4,
    351_600: 2.49295e-7,
}


@MODELS.register_module(force=True)
class ThreeGroups(BaseModel):
    """Model with a parameter for each rule of the published optimiser."""

    def __init__(self) -> None:
        super().__init__()
        self.img_backbone = nn.Linear(1, 1, bias=False)
        self.sampling_offset = nn.Linear(1, 1, bias=False)
        self.head = nn.Linear(1, 1, bias=False)

    def forward(self, *args: Any, **kwargs: Any) -> None: ...


@DATASETS.register_module(force=True)
class CountedDataset(BaseDataset):
    """Data set with a given number of empty samples."""

    def load_data_list(self) -> list[dict]:
        return [{}] * TRAINING_SAMPLES


def build_runner(epochs: int, work_dir: Path) -> OpusRunner:
    config = load_config(
        CONFIGS / NAME.format(epochs), {"vis_backends": [], "default_hooks.validation_sheet": None}
    )
    fit_config(config, Launch())
    config.work_dir = str(work_dir)
    config.model = dict(type="ThreeGroups")
    config.train_dataloader.dataset = dict(type="CountedDataset")
    config.train_dataloader.num_workers = 0
    config.train_dataloader.pop("persistent_workers", None)
    for key in ("val", "test"):
        config.update({f"{key}_dataloader": None, f"{key}_cfg": None, f"{key}_evaluator": None})
    runner = OpusRunner.from_cfg(config)
    runner._train_loop = runner.build_train_loop(runner._train_loop)
    runner.optim_wrapper = runner.build_optim_wrapper(runner.optim_wrapper)
    runner.param_schedulers = runner.build_param_scheduler(runner.param_schedulers)
    return runner


def rates_at(runner: OpusRunner, iterations: list[int]) -> dict[int, dict[str, float]]:
    """Return the rate of every parameter after some iterations of the runner's hook."""
    hook, names = ParamSchedulerHook(), {id(p): n for n, p in runner.model.named_parameters()}

    def rates() -> dict[str, float]:
        return {
            names[id(parameter)]: group["lr"]
            for group in runner.optim_wrapper.optimizer.param_groups
            for parameter in group["params"]
        }

    assert len(runner.train_dataloader) == ITERATIONS
    found, epoch, done = {}, 0, 0
    for target in iterations:
        while done < target:
            if epoch > 0 and done % ITERATIONS < ITERATIONS - 1:  # no scheduler acts between
                before = rates()
                hook.after_train_iter(runner, 0)
                assert rates() == before
                done = min(target, (epoch + 1) * ITERATIONS - 1)
                continue
            hook.after_train_iter(runner, done % ITERATIONS)
            done += 1
            if done % ITERATIONS == 0:
                epoch += 1
                hook.after_train_epoch(runner)
        found[target] = rates()
    return found


@pytest.mark.skipif(torch.cuda.is_available(), reason="as on the CPU, which needs no AMP wrapper")
def test_learning_rates_are_the_published_ones(tmp_path: Path) -> None:
    found = rates_at(build_runner(100, tmp_path), list(PUBLISHED))
    for iteration, expected in PUBLISHED.items():
        rates = found[iteration]
        assert rates["head.weight"] == pytest.approx(expected, rel=3e-6), iteration
        for name in ("img_backbone.weight", "sampling_offset.weight"):
            assert rates[name] == pytest.approx(expected / 10, rel=3e-6), iteration


@pytest.mark.skipif(torch.cuda.is_available(), reason="as on the CPU, which needs no AMP wrapper")
def test_fifty_epochs_end_as_a_hundred_do(tmp_path: Path) -> None:
    found = rates_at(build_runner(50, tmp_path), [25 * ITERATIONS, 50 * ITERATIONS - 1])
    half, last = (rates["head.weight"] for rates in found.values())
    assert half == pytest.approx((2e-4 + 2e-7) / 2)
    assert 2e-7 < last < 5e-7
