from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

import train
import val
from scripts.runtime.checkpoint import read_checkpoint
from scripts.runtime.errors import EXIT_INTERRUPTED, EXIT_USER_ERROR

STEPS_PER_EPOCH = 6  # ceil(22 samples / batch 4)
EPOCHS = 3


def run_train(config: Path, work_dir: Path, *extra: str) -> int:
    return train.main(["--config", str(config), "--work-dir", str(work_dir), *extra])


def last_checkpoint(work_dir: Path) -> dict:
    return read_checkpoint(Path(work_dir, "last_checkpoint").read_text())


def expected_error(checkpoint: dict) -> float:
    """Return the mean error of the stored weights over the data set, without the runner."""
    from tiny_parts import TinyDataset

    weight, bias = (checkpoint["state_dict"][f"linear.{name}"] for name in ("weight", "bias"))
    dataset = TinyDataset()
    items = [dataset[index] for index in range(len(dataset))]
    errors = [item["inputs"] @ weight[0] + bias[0] - item["data_samples"].target for item in items]
    return torch.stack(errors).abs().mean().item()


def assert_same_state(first: dict, second: dict) -> None:
    for key, value in first["state_dict"].items():
        torch.testing.assert_close(second["state_dict"][key], value, rtol=0, atol=0)
    states = first["optimizer"]["state"], second["optimizer"]["state"]
    assert states[0].keys() == states[1].keys()
    for key, entry in states[0].items():
        for name, value in entry.items():
            torch.testing.assert_close(states[1][key][name], value, rtol=0, atol=0)


def test_training_then_scoring_writes_json(config: Path, tmp_path: Path) -> None:
    assert run_train(config, tmp_path / "run") == 0
    checkpoint = last_checkpoint(tmp_path / "run")
    assert checkpoint["meta"]["iter"] == EPOCHS * STEPS_PER_EPOCH
    assert checkpoint["meta"]["epoch"] == EPOCHS

    weights = Path(tmp_path, "run", "last_checkpoint").read_text()
    out = tmp_path / "scores.json"
    common = ["--config", str(config), "--work-dir", str(tmp_path / "run")]
    assert val.main([*common, "--weights", weights, "--out", str(out)]) == 0
    report = json.loads(out.read_text())
    assert report["metrics"]["tiny/error"] == pytest.approx(expected_error(checkpoint), rel=1e-5)
    assert report["metrics"]["tiny/samples"] == report["num_samples"] == 22
    assert report["checkpoint"]["path"] == weights
    assert len(report["checkpoint"]["sha256"]) == 64
    assert report["versions"]["torch"] == torch.__version__


def test_scores_go_beside_the_log_by_default(config: Path, tmp_path: Path) -> None:
    from tiny_parts import TinyModel

    weights = tmp_path / "weights.pth"
    torch.save({"state_dict": TinyModel().state_dict()}, weights)
    common = ["--config", str(config), "--work-dir", str(tmp_path / "run")]
    assert val.main([*common, "--weights", str(weights)]) == 0
    [metrics] = (tmp_path / "run").glob("*/metrics.json")
    assert list(metrics.parent.glob("*.log"))


def test_log_holds_loss_rate_memory_and_eta(config: Path, tmp_path: Path) -> None:
    assert run_train(config, tmp_path / "run") == 0
    [log] = (tmp_path / "run").glob("*/*.log")
    line = next(line for line in log.read_text().splitlines() if "Epoch(train) [2][6/6]" in line)
    for word in ("loss: ", "lr: ", "host_memory: ", "eta: "):
        assert word in line
    assert "mixed precision is off" in log.read_text()
    assert list((tmp_path / "run").glob("*/vis_data/events.out.tfevents*"))


@pytest.mark.parametrize("workers", [0, 2])
def test_interrupted_epoch_is_resumed_where_it_was_left(
    config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, workers: int, capsys
) -> None:
    loader = ["--cfg-options", f"train_dataloader.num_workers={workers}"]
    monkeypatch.setenv("TINY_STEPS_FILE", str(tmp_path / "whole.txt"))
    assert run_train(config, tmp_path / "whole", *loader) == 0

    monkeypatch.setenv("TINY_STEPS_FILE", str(tmp_path / "parts.txt"))
    monkeypatch.setenv("TINY_INTERRUPT_AT", "9")  # the third step of the second epoch
    assert run_train(config, tmp_path / "parts", *loader) == EXIT_INTERRUPTED
    assert "stopped after 9 iterations and saved" in capsys.readouterr().err
    interrupted = last_checkpoint(tmp_path / "parts")
    assert (interrupted["meta"]["epoch"], interrupted["meta"]["iter"]) == (1, 9)

    monkeypatch.delenv("TINY_INTERRUPT_AT")
    assert run_train(config, tmp_path / "parts", *loader, "--resume") == 0
    assert (tmp_path / "parts.txt").read_text() == (tmp_path / "whole.txt").read_text()
    whole, parts = last_checkpoint(tmp_path / "whole"), last_checkpoint(tmp_path / "parts")
    assert parts["meta"]["iter"] == whole["meta"]["iter"] == EPOCHS * STEPS_PER_EPOCH
    assert_same_state(whole, parts)
    assert not (tmp_path / "parts" / "interrupted.pth").exists()


@pytest.mark.parametrize("sampler", ["DefaultSampler", "InfiniteSampler"])
def test_training_by_iterations_is_resumed_where_it_was_left(
    config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, sampler: str
) -> None:
    child = tmp_path / "by_iteration.py"
    child.write_text(
        f"_base_ = {str(config)!r}\n"
        "train_cfg = dict(_delete_=True, type='IterBasedTrainLoop', max_iters=15, val_interval=5)\n"
        f"train_dataloader = dict(sampler=dict(type={sampler!r}))\n"
        "param_scheduler = [dict(type='CosineAnnealingLR', T_max=15, by_epoch=False)]\n"
        "default_hooks = dict(checkpoint=dict(by_epoch=False, interval=5))\n"
    )
    monkeypatch.setenv("TINY_STEPS_FILE", str(tmp_path / "whole.txt"))
    assert run_train(child, tmp_path / "whole") == 0
    monkeypatch.setenv("TINY_STEPS_FILE", str(tmp_path / "parts.txt"))
    for step in ("6", "2"):  # the end of the first pass, and the middle of the second
        monkeypatch.setenv("TINY_INTERRUPT_AT", step)
        assert run_train(child, tmp_path / "parts", "--resume") == EXIT_INTERRUPTED
    assert last_checkpoint(tmp_path / "parts")["meta"]["iter"] == 8
    monkeypatch.delenv("TINY_INTERRUPT_AT")
    assert run_train(child, tmp_path / "parts", "--resume") == 0
    assert (tmp_path / "parts.txt").read_text() == (tmp_path / "whole.txt").read_text()
    whole, parts = last_checkpoint(tmp_path / "whole"), last_checkpoint(tmp_path / "parts")
    assert parts["meta"]["iter"] == whole["meta"]["iter"] == 15
    assert_same_state(whole, parts)


def test_interrupt_at_the_end_of_an_epoch(
    config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert run_train(config, tmp_path / "whole") == 0
    monkeypatch.setenv("TINY_INTERRUPT_AT", str(STEPS_PER_EPOCH))
    assert run_train(config, tmp_path / "parts") == EXIT_INTERRUPTED
    monkeypatch.delenv("TINY_INTERRUPT_AT")
    assert run_train(config, tmp_path / "parts", "--resume") == 0
    assert_same_state(last_checkpoint(tmp_path / "whole"), last_checkpoint(tmp_path / "parts"))


def test_crashed_run_is_resumed_from_its_last_epoch(
    config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert run_train(config, tmp_path / "whole") == 0
    monkeypatch.setenv("TINY_CRASH_AT", "9")
    with pytest.raises(ZeroDivisionError):  # a defect keeps its traceback
        run_train(config, tmp_path / "parts")
    monkeypatch.delenv("TINY_CRASH_AT")
    assert last_checkpoint(tmp_path / "parts")["meta"]["iter"] == STEPS_PER_EPOCH
    assert run_train(config, tmp_path / "parts", "--resume") == 0
    assert_same_state(last_checkpoint(tmp_path / "whole"), last_checkpoint(tmp_path / "parts"))


def test_resume_without_a_checkpoint_starts_anew(config: Path, tmp_path: Path) -> None:
    assert run_train(config, tmp_path / "run", "--resume") == 0
    assert last_checkpoint(tmp_path / "run")["meta"]["epoch"] == EPOCHS


def test_max_epochs_sets_loop_and_schedule(config: Path, tmp_path: Path) -> None:
    assert run_train(config, tmp_path / "run", "--cfg-options", "max_epochs=1") == 0
    checkpoint = last_checkpoint(tmp_path / "run")
    assert checkpoint["meta"]["iter"] == STEPS_PER_EPOCH
    # At the end of the schedule the rate is 1e-3 of its start (one step short of it).
    assert checkpoint["optimizer"]["param_groups"][0]["lr"] < 0.05 * 0.1


def test_load_from_takes_what_fits(config: Path, tmp_path: Path) -> None:
    weights = tmp_path / "part.pth"
    torch.save({"state_dict": {"linear.weight": torch.full((1, 3), 2.0)}}, weights)
    frozen = ["--cfg-options", "max_epochs=1", "optim_wrapper.optimizer.lr=0.0"]
    assert run_train(config, tmp_path / "run", "--load-from", str(weights), *frozen) == 0
    trained = last_checkpoint(tmp_path / "run")["state_dict"]["linear.weight"]
    torch.testing.assert_close(trained, torch.full((1, 3), 2.0))
    [log] = (tmp_path / "run").glob("*/*.log")
    assert "1 of 2 tensors loaded; left as initialised: linear.bias" in log.read_text()


def test_load_from_with_renamed_keys(config: Path, tmp_path: Path) -> None:
    weights = tmp_path / "theirs.pth"
    state = {"backbone.weight": torch.full((1, 3), 2.0), "backbone.bias": torch.full((1,), 3.0)}
    torch.save({"state_dict": state}, weights)
    child = tmp_path / "renamed.py"
    child.write_text(f"_base_ = {str(config)!r}\nrevise_keys = [(r'^backbone\\.', 'linear.')]\n")
    frozen = ["--cfg-options", "max_epochs=1", "optim_wrapper.optimizer.lr=0.0"]
    assert run_train(child, tmp_path / "run", "--load-from", str(weights), *frozen) == 0
    trained = last_checkpoint(tmp_path / "run")["state_dict"]
    assert torch.equal(trained["linear.bias"], torch.full((1,), 3.0))


def test_resume_and_load_from_exclude_each_other(config: Path, tmp_path: Path, capsys) -> None:
    code = run_train(config, tmp_path / "run", "--resume", "--load-from", "x.pth")
    assert code == EXIT_USER_ERROR
    assert "exclude each other" in capsys.readouterr().err
