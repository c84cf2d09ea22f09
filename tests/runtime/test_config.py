from __future__ import annotations

from pathlib import Path

import pytest

from scripts.runtime.config import load_config
from scripts.runtime.errors import ConfigError
from scripts.runtime.fit import fit_config
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
    cfg = load_config(config)
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    assert fit_config(cfg, Launch()) == []
    assert cfg.optim_wrapper.type == "AmpOptimWrapper"
