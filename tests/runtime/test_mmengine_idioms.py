"""Config changes that are common in MMEngine, each trained by train.py."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import train

NUM_SAMPLES, BATCH_SIZE = 22, 4


def run(config: Path, work_dir: Path, text: str, *arguments: str) -> list[list[int]]:
    """Train a child of the tiny config; return the samples of every step."""
    child = config.parent / "child.py"
    child.write_text(f"_base_ = {config.name!r}\n{text}\n")
    code = train.main(["--config", str(child), "--work-dir", str(work_dir), *arguments])
    assert code == 0
    return [list(map(int, line.split())) for line in (work_dir / "steps.txt").open()]


@pytest.fixture(autouse=True)
def _steps(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "run").mkdir()
    monkeypatch.setenv("TINY_STEPS_FILE", str(tmp_path / "run" / "steps.txt"))


def last_checkpoint(work_dir: Path) -> dict:
    path = work_dir / Path((work_dir / "last_checkpoint").read_text().strip()).name
    return torch.load(path, weights_only=False)


@pytest.mark.parametrize(
    ("text", "steps"),
    [
        ("train_cfg = dict(max_epochs=2)", 12),
        ("max_epochs = 2", 12),
        ("train_dataloader = dict(batch_size=11)", 6),
        ("batch_size = 11", 6),
        ("train_cfg = dict(type='EpochBasedTrainLoop', max_epochs=1)", 6),
        ("train_cfg = dict(type='IterBasedTrainLoop', max_iters=7, val_interval=5)", 7),
        ("train_cfg = dict(by_epoch=False, max_iters=7, val_interval=7)", 7),
    ],
)
def test_loops(config: Path, tmp_path: Path, text: str, steps: int) -> None:
    assert len(run(config, tmp_path / "run", text)) == steps
    if "max_iters" in text:
        saved = last_checkpoint(tmp_path / "run")
        assert saved["meta"]["iter"] == 7
        # The cosine ends with the training: at its last iteration the rate is near its minimum.
        rate = saved["param_schedulers"][1]["_last_value"][0]
        assert rate < 0.05 * 0.2


def test_repeated_and_concatenated_data(config: Path, tmp_path: Path) -> None:
    text = """
leaf = dict(type='TinyDataset')
train_dataloader = dict(dataset=dict(
    _delete_=True, type='RepeatDataset', times=2, dataset=dict(
        type='ConcatDataset', datasets=[leaf, leaf])))
train_cfg = dict(max_epochs=1)
"""
    steps = run(config, tmp_path / "run", text)
    assert len(steps) == 4 * NUM_SAMPLES // BATCH_SIZE


def test_hooks_are_added_to_the_defaults(config: Path, tmp_path: Path) -> None:
    text = """
custom_hooks = [
    dict(type='EMAHook'),
    dict(type='EarlyStoppingHook', monitor='tiny/error', rule='less', patience=1,
         min_delta=1e9)]
train_cfg = dict(max_epochs=20, val_interval=1)
"""
    steps = run(config, tmp_path / "run", text)
    assert len(steps) < 20 * 6  # stopped early
    saved = last_checkpoint(tmp_path / "run")
    assert "ema_state_dict" in saved
    # The default hooks run as well: the log has the host's memory.
    (log,) = (tmp_path / "run").glob("*/vis_data/scalars.json")
    assert "host_memory" in log.read_text()


def test_gradients_are_accumulated(config: Path, tmp_path: Path) -> None:
    text = "optim_wrapper = dict(accumulative_counts=2)\ntrain_cfg = dict(max_epochs=1)"
    run(config, tmp_path / "run", text)
    assert last_checkpoint(tmp_path / "run")["meta"]["iter"] == 3  # steps of eight samples


def test_the_written_config_is_read_again(config: Path, tmp_path: Path) -> None:
    run(config, tmp_path / "run", "max_epochs = 1", "--cfg-options", "num_workers=0")
    written = tmp_path / "run" / "child.py"
    again = tmp_path / "again"
    again.mkdir()
    assert train.main(["--config", str(written), "--work-dir", str(again)]) == 0
    assert (again / "child.py").read_text() == written.read_text().replace(
        str(tmp_path / "run"), str(again)
    )


def test_a_back_end_that_is_not_installed(
    config: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    child = config.parent / "child.py"
    child.write_text(f"_base_ = {config.name!r}\nvis_backends = [dict(type='WandbVisBackend')]\n")
    code = train.main(["--config", str(child), "--work-dir", str(tmp_path / "run")])
    assert code == 2 and "wandb" in capsys.readouterr().err


def test_a_config_without_any_base(config: Path, tmp_path: Path) -> None:
    text = config.read_text().split("\n", 2)[2].replace(", 'scripts.runtime.register'", "")
    lone = tmp_path / "lone.py"
    lone.write_text(text)
    assert train.main(["--config", str(lone), "--work-dir", str(tmp_path / "run")]) == 0
    assert len((tmp_path / "run" / "steps.txt").read_text().splitlines()) == 18
