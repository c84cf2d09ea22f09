"""Accumulated gradients equal a step of the whole batch."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from mmengine.config import Config
from mmengine.optim import OptimWrapper
from mmengine.registry import MODELS
from torch import Tensor, nn

import models.register  # noqa: F401
import train
from scripts.runtime.accumulation import accumulated_step, split_batch
from scripts.runtime.batch_norm_sync import learned_statistics, refuse_sync_bn
from scripts.runtime.checkpoint import read_checkpoint
from scripts.runtime.errors import EXIT_USER_ERROR, ConfigError
from tests.models.cases import DETECTOR, HEAD, make_batch, merge


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def weights(config: Path, work_dir: Path, *options: str) -> dict[str, Any]:
    arguments = ["--config", str(config), "--work-dir", str(work_dir)]
    assert train.main([*arguments, "--cfg-options", "max_epochs=1", *options]) == 0
    return read_checkpoint((work_dir / "last_checkpoint").read_text())


def test_iterations_and_weights_are_those_of_the_larger_batch(config: Path, tmp_path: Path) -> None:
    whole = weights(config, tmp_path / "whole", "batch_size=4")
    # 22 samples: the last step of an epoch has two, a part each
    parts = weights(
        config, tmp_path / "parts", "batch_size=2", "optim_wrapper.accumulative_counts=2"
    )
    assert parts["meta"]["iter"] == whole["meta"]["iter"] == 6
    for key, value in whole["state_dict"].items():
        torch.testing.assert_close(parts["state_dict"][key], value)
    assert parts["param_schedulers"] == whole["param_schedulers"]


@pytest.mark.parametrize("count", ["0", "1.5"])
def test_count_that_is_none_is_refused(
    config: Path, tmp_path: Path, count: str, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ["--cfg-options", f"optim_wrapper.accumulative_counts={count}"]
    code = train.main(["--config", str(config), "--work-dir", str(tmp_path / "run"), *options])
    assert code == EXIT_USER_ERROR
    assert f"accumulative_counts is {count}" in capsys.readouterr().err


def test_parts_of_a_batch_hold_every_sample_once() -> None:
    data = dict(inputs=dict(img=list("abcde")), data_samples=[0, 1, 2, 3, 4])
    pieces = split_batch(data, 3)
    assert [piece["data_samples"] for piece in pieces] == [[0], [1, 2], [3, 4]]
    assert pieces[1]["inputs"] == dict(img=["b", "c"])
    assert len(split_batch(data, 9)) == 5


def detector(seed: int = 0) -> Any:
    torch.manual_seed(seed)
    head = merge(HEAD, loss_pts=dict(type="ChamferLoss", density_aware=True))
    return MODELS.build(merge(DETECTOR, pts_bbox_head=head)).train()


def gradient_of(model: Any, batch: dict[str, Any], parts: int) -> dict[str, Tensor]:
    """Return the gradient of an optimiser step by parameter."""
    before = {name: value.detach().clone() for name, value in model.named_parameters()}
    wrapper = OptimWrapper(torch.optim.SGD(model.parameters(), lr=1.0))
    accumulated_step(model, batch, wrapper, parts)
    return {name: before[name] - value.detach() for name, value in model.named_parameters()}


def test_gradient_of_unequal_parts_is_that_of_the_batch() -> None:
    """Counts depend on the predictions; three samples are split into one and two."""
    model = detector()
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.eval()
    state = {name: value.clone() for name, value in model.state_dict().items()}
    batch = make_batch(0, 1, 2)
    batch["data_samples"][0].voxel_semantics[4:] = HEAD["empty_label"]  # far fewer to count
    whole = gradient_of(model, batch, parts=1)
    model.load_state_dict(state)
    in_parts = gradient_of(model, batch, parts=2)
    scale = max(float(value.abs().max()) for value in whole.values())
    for name, value in whole.items():
        torch.testing.assert_close(in_parts[name], value, rtol=1e-3, atol=1e-5 * scale, msg=name)


def test_counting_leaves_statistics_and_generator_alone() -> None:
    """Batch norms process every part once, and both runs draw the same seeds."""
    model, second = detector(), detector()
    batch = make_batch(0, 1)
    generator = torch.get_rng_state()
    gradient_of(model, batch, parts=2)
    after = torch.get_rng_state()
    torch.set_rng_state(generator)
    with torch.no_grad():
        for piece in split_batch(batch, 2):
            second(**second.data_preprocessor(piece, True), mode="loss")
    assert torch.equal(torch.get_rng_state(), after)
    found, expected = list(learned_statistics(model)), list(learned_statistics(second))
    assert len(found) > 0
    for ours, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, theirs)


def test_statistics_of_resting_batch_norms_are_not_averaged() -> None:
    model = nn.Sequential(nn.BatchNorm1d(3), nn.BatchNorm2d(4), nn.LayerNorm(3)).train()
    model[0].eval()
    found = list(learned_statistics(model))
    assert len(found) == 2
    assert found[0] is model[1].running_mean and found[1] is model[1].running_var


def test_synchronised_batch_norm_without_gpus_is_refused() -> None:
    refuse_sync_bn(Config(dict(sync_bn=None)))
    with pytest.raises(ConfigError, match="sync_bn needs GPUs"):
        refuse_sync_bn(Config(dict(sync_bn="torch")))
