"""The runner of a config, and the config in the work dir."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import train
import val
from scripts.runtime.config import load_config
from scripts.runtime.errors import EXIT_USER_ERROR, ConfigError
from scripts.runtime.launch import Launch
from scripts.runtime.runner import build_runner, prepare_config
from scripts.runtime.sections import check_custom_keys


def test_the_config_of_a_work_dir_is_read_again(config: Path, tmp_path: Path) -> None:
    """It is valid for any number of processes, because it is written before it is fitted."""
    first, second = tmp_path / "first", tmp_path / "second"
    options = ["--cfg-options", "max_epochs=1", "batch_size=6"]
    assert train.main(["--config", str(config), "--work-dir", str(first), *options]) == 0
    dumped = first / config.name
    cfg = load_config(dumped)
    assert cfg.batch_size == 6 and "batch_size" not in cfg.train_dataloader
    assert "launcher" not in cfg and cfg.optim_wrapper == load_config(config).optim_wrapper
    assert train.main(["--config", str(dumped), "--work-dir", str(second)]) == 0
    for run in (first, second):
        assert [path.name for path in run.glob("*.pth")] == ["epoch_1.pth"]
    assert (second / config.name).read_text().replace("second", "first") == dumped.read_text()
    weights = ["--weights", str(second / "epoch_1.pth"), "--work-dir", str(tmp_path / "val")]
    assert val.main(["--config", str(second / config.name), *weights]) == 0


def test_runners(config: Path, tmp_path: Path, capsys: Any) -> None:
    sentences = {
        "FlexibleRunner": "cannot be resumed exactly",
        "OpusRuner": "did you mean 'OpusRunner'",
    }
    for name, words in sentences.items():
        arguments = ["--config", str(config), "--work-dir", str(tmp_path / name)]
        assert train.main([*arguments, "--cfg-options", f"runner_type={name}"]) == EXIT_USER_ERROR
        assert words in capsys.readouterr().err
    options = ["runner_type=Runner", "runner_type=OpusRunner"]
    for option in options:
        cfg = prepare_config(str(config), dict([option.split("=")]), str(tmp_path / "run"))
        assert type(build_runner(cfg, Launch())).__name__ == "OpusRunner"


def test_rules_for_parameters_that_do_not_exist_are_refused() -> None:
    names = ["img_backbone.conv1.weight", "head.bias"]
    check_custom_keys(dict(paramwise_cfg=dict(custom_keys=dict(conv1={}, head={}))), names)
    wrapper = dict(paramwise_cfg=dict(custom_keys=dict(img_bakbone=dict(lr_mult=0.1))))
    with pytest.raises(ConfigError, match=r"did you mean 'img_backbone'"):
        check_custom_keys(wrapper, names)


def test_evaluations_of_several_processes_write_no_files(config: Path, tmp_path: Path) -> None:
    from test_distributed import launch

    options = ["--cfg-options", "max_epochs=1"]
    folder = tmp_path / "here"
    folder.mkdir()
    done = launch(
        "dist_train.sh", "2", str(config), "--work-dir", str(tmp_path / "run"), *options,
        folder=folder,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    assert list(folder.iterdir()) == []
