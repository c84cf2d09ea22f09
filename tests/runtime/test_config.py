from __future__ import annotations

from pathlib import Path

import pytest
from mmengine.config import Config

from scripts.runtime.config import fit_config, load_config
from scripts.runtime.errors import ConfigError
from scripts.runtime.launch import Launch

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize(("total", "processes", "share"), [(8, 1, 8), (8, 2, 4), (8, 8, 1)])
def test_batch_size_is_the_total(config: Path, total: int, processes: int, share: int) -> None:
    cfg = load_config(config, {"batch_size": total})
    fit_config(cfg, Launch(world_size=processes))
    assert cfg.train_dataloader.batch_size == share


def test_batch_size_that_does_not_divide(config: Path) -> None:
    cfg = load_config(config, {"batch_size": 8})
    with pytest.raises(ConfigError, match=r"batch_size 8 .* not divisible by 3 processes"):
        fit_config(cfg, Launch(world_size=3))


def test_mixed_precision_becomes_float32_on_the_cpu(
    config: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    cfg = load_config(config)
    notes = fit_config(cfg, Launch())
    assert cfg.optim_wrapper.type == "OptimWrapper"
    assert not {"dtype", "loss_scale"} & set(cfg.optim_wrapper)
    assert cfg.optim_wrapper.clip_grad.max_norm == 35
    assert len(notes) == 1 and "mixed precision is off" in notes[0]


def test_mixed_precision_stays_on_gpus(config: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    cfg = load_config(config)
    assert fit_config(cfg, Launch()) == []
    assert cfg.optim_wrapper.type == "AmpOptimWrapper"


def test_published_schedule() -> None:
    schedule = Config.fromfile(str(ROOT / "configs/_base_/schedules/adamw_100e.py"))
    optimizer = schedule.optim_wrapper
    assert (optimizer.optimizer.type, optimizer.optimizer.lr) == ("AdamW", 2e-4)
    assert optimizer.optimizer.weight_decay == 0.01
    slow = optimizer.paramwise_cfg.custom_keys
    assert slow.img_backbone.lr_mult == slow.sampling_offset.lr_mult == 0.1
    assert optimizer.clip_grad.max_norm == 35
    assert schedule.batch_size == 8 and schedule.train_cfg.max_epochs == 100
    warm_up, decay = schedule.param_scheduler
    assert (warm_up.start_factor, warm_up.end) == (pytest.approx(1 / 3), 501)
    assert (decay.eta_min_ratio, decay.T_max) == (1e-3, 100)


def test_max_epochs_moves_all_ends_that_follow() -> None:
    cfg = Config.fromfile(str(ROOT / "configs/_base_/schedules/adamw_100e.py"))
    cfg.max_epochs = 24
    fit_config(cfg, Launch())
    assert cfg.train_cfg.max_epochs == cfg.train_cfg.val_interval == 24
    warm_up, decay = cfg.param_scheduler
    assert (decay.end, decay.T_max) == (24, 24)
    assert warm_up.end == 501  # counted in iterations: not an end of the training


def test_data_root_reaches_every_data_set() -> None:
    cfg = load_config(ROOT / "configs/toy/opusv2-nano_toy.py", {"data_root": "elsewhere"})
    for name in ("train", "val", "test"):
        assert cfg[f"{name}_dataloader"].dataset.data_root == "elsewhere"
