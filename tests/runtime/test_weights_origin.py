"""Origin of weights: the decision as a table, and the entry points."""

from __future__ import annotations

import errno
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from mmengine.logging import MessageHub, MMLogger
from mmengine.registry import MODELS
from mmengine.visualization import LocalVisBackend, Visualizer
from torch import nn

import models.register  # noqa: F401
import train
from scripts.runtime.checkpoint import CheckpointError, read_checkpoint, start_from
from scripts.runtime.errors import EXIT_INTERRUPTED, EXIT_USER_ERROR, ConfigError
from scripts.runtime.weights_origin import (
    OriginKind,
    WeightsOrigin,
    decide_origin,
    settle_pretrained,
)
from tests.models.cases import DETECTOR, HEAD, merge

STEPS_PER_EPOCH = 6


def run_train(config: Path, work_dir: Path, *extra: str) -> int:
    for manager in (MessageHub, MMLogger, Visualizer):  # as in a new process
        manager._instance_dict.clear()
    return train.main(["--config", str(config), "--work-dir", str(work_dir), *extra])


def log_of(work_dir: Path) -> str:
    """Return the log of the last run."""
    return max(work_dir.glob("*/*.log"), key=lambda path: path.stat().st_mtime_ns).read_text()


RESUME, LOAD, WEIGHTS = OriginKind.RESUME, OriginKind.LOAD_FROM, OriginKind.WEIGHTS
TABLE: list[tuple[dict[str, Any], OriginKind, str | None]] = [
    # nothing requested
    (dict(), OriginKind.SCRATCH, None),
    (dict(newest="new.pth"), OriginKind.SCRATCH, None),  # resuming must be requested
    (dict(config_load_from="c.pth"), LOAD, "c.pth"),
    (dict(config_load_from="c.pth", newest="new.pth"), LOAD, "c.pth"),
    # --resume
    (dict(resume="auto"), OriginKind.SCRATCH, None),
    (dict(resume="auto", newest="new.pth"), RESUME, "new.pth"),
    (dict(resume="auto", config_load_from="c.pth"), LOAD, "c.pth"),  # a requeued first start
    (dict(resume="auto", config_load_from="c.pth", newest="new.pth"), RESUME, "new.pth"),
    (dict(resume="auto", config_load_from="c.pth", config_file_resumes=True), LOAD, "c.pth"),
    (dict(resume="x.pth"), RESUME, "x.pth"),
    (dict(resume="x.pth", newest="new.pth", config_load_from="c.pth"), RESUME, "x.pth"),
    # the config's own `resume`, as MMEngine reads it
    (dict(config_resume=True), OriginKind.SCRATCH, None),
    (dict(config_resume=True, newest="new.pth"), RESUME, "new.pth"),
    (dict(config_resume=True, config_load_from="c.pth"), LOAD, "c.pth"),
    (
        dict(config_resume=True, config_load_from="c.pth", config_file_resumes=True),
        RESUME,
        "c.pth",
    ),
    (
        dict(
            config_resume=True,
            config_load_from="c.pth",
            config_file_resumes=True,
            newest="new.pth",
        ),
        RESUME,
        "new.pth",
    ),
    # --load-from
    (dict(load_from="x.pth"), LOAD, "x.pth"),
    (dict(load_from="x.pth", config_load_from="c.pth", newest="new.pth"), LOAD, "x.pth"),
    (dict(load_from="x.pth", config_resume=True, newest="new.pth"), LOAD, "x.pth"),
    # --weights
    (dict(weights="w.pth"), WEIGHTS, "w.pth"),
    (dict(weights="w.pth", config_load_from="c.pth", config_resume=True), WEIGHTS, "w.pth"),
]


@pytest.mark.parametrize(("given", "kind", "path"), TABLE, ids=[str(row[0]) for row in TABLE])
def test_decision(given: dict[str, Any], kind: OriginKind, path: str | None) -> None:
    assert decide_origin(**given) == WeightsOrigin(kind, path)


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (dict(resume="auto", load_from="x.pth"), "--resume and --load-from exclude each other"),
        (dict(weights="w.pth", resume="auto"), "--weights excludes --resume"),
        (dict(weights="w.pth", load_from="x.pth"), "--weights excludes --resume and --load-from"),
        (dict(drop_mismatched=True), "--drop-mismatched needs a file to start from"),
        (dict(drop_mismatched=True, resume="auto"), "--drop-mismatched needs a file"),
    ],
)
def test_contradictions(given: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        decide_origin(**given)


def test_dropping_belongs_to_the_start(config: Path) -> None:
    origin = decide_origin(load_from="x.pth", drop_mismatched=True)
    assert origin.drop_mismatched
    assert not decide_origin(
        resume="auto", newest="n.pth", config_load_from="c.pth", drop_mismatched=True
    ).drop_mismatched


def tiny_weights(path: Path, value: float) -> Path:
    weights = {"linear.weight": torch.full((1, 3), value), "linear.bias": torch.zeros(1)}
    torch.save({"state_dict": weights}, path)
    return path


def test_a_requeued_first_start_takes_the_pretrained_weights(config: Path, tmp_path: Path) -> None:
    weights = tiny_weights(tmp_path / "pretrained.pth", 2.0)
    options = [f"load_from={weights}", "optim_wrapper.optimizer.lr=0.0", "max_epochs=1"]
    assert run_train(config, tmp_path / "run", "--resume", "--cfg-options", *options) == 0
    stored = read_checkpoint(tmp_path / "run" / "epoch_1.pth")["state_dict"]
    assert torch.equal(stored["linear.weight"], torch.full((1, 3), 2.0))
    assert "to resume" in log_of(tmp_path / "run") and "started from" in log_of(tmp_path / "run")


@pytest.mark.parametrize("how", ["copied", "moved"])
def test_a_work_dir_elsewhere_resumes_its_own_files(config: Path, tmp_path: Path, how: str) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    assert run_train(config, first, "--cfg-options", "max_epochs=1") == 0
    if how == "copied":
        shutil.copytree(first, second)
        assert run_train(config, first, "--resume") == 0  # the original continues
    else:
        first.rename(second)
    assert run_train(config, second, "--resume", "--cfg-options", "max_epochs=2") == 0
    assert f"resumed {second}/epoch_1.pth" in log_of(second)
    assert Path((second / "last_checkpoint").read_text()) == second / "epoch_2.pth"
    if how == "copied":
        assert sorted(path.name for path in first.glob("*.pth")) == ["epoch_2.pth", "epoch_3.pth"]


def test_the_config_text_of_a_checkpoint_is_not_run(config: Path, tmp_path: Path) -> None:
    run, mark = tmp_path / "run", tmp_path / "mark"
    assert run_train(config, run, "--cfg-options", "max_epochs=1") == 0
    whole = read_checkpoint(run / "epoch_1.pth")
    for text in (f'x = __import__("os").system("touch {mark}")', "this is no Python (", 7, None):
        content = {**whole, "meta": {**whole["meta"], "cfg": text, "config": text}}
        torch.save(content, run / "epoch_1.pth")
        assert run_train(config, run, "--resume", "--cfg-options", "max_epochs=1") == 0
        assert not mark.exists()


BROKEN: list[tuple[dict[str, Any], str]] = [
    (dict(meta=None, place=None), "does not contain the progress of its training"),
    (dict(meta=dict(epoch="one", iter=6), place=None), "epoch is 'one'"),
    (dict(meta=dict(epoch=1, iter=-6), place=None), "iteration is -6"),
    (dict(optimizer=dict(state={}, param_groups=[])), "number of parameter groups differs"),
    (dict(optimizer=3), "contains no state"),
    (dict(optimizer="shape"), r"exp_avg has the shape \(7,\)"),
]


@pytest.mark.parametrize(("changes", "words"), BROKEN, ids=[words for _, words in BROKEN])
def test_a_checkpoint_that_cannot_be_resumed(
    config: Path, tmp_path: Path, capsys: Any, changes: dict[str, Any], words: str
) -> None:
    run = tmp_path / "run"
    assert run_train(config, run, "--cfg-options", "max_epochs=1") == 0
    content = read_checkpoint(run / "epoch_1.pth")
    if changes.get("optimizer") == "shape":
        content["optimizer"]["state"][0]["exp_avg"] = torch.zeros(7)
        changes = {}
    torch.save({**content, **changes}, run / "epoch_1.pth")
    capsys.readouterr()
    assert run_train(config, run, "--resume") == EXIT_USER_ERROR
    sentence = capsys.readouterr().err.strip().splitlines()[-1]
    assert re.search(words, sentence), sentence


def test_what_else_is_stored_may_be_anything(config: Path, tmp_path: Path) -> None:
    """Invalid histories, schedules and random states are ignored."""
    run = tmp_path / "run"
    assert run_train(config, run, "--cfg-options", "max_epochs=1") == 0
    precious = tmp_path / "precious.pth"
    precious.write_text("keep me")
    whole = read_checkpoint(run / "epoch_1.pth")
    info = dict(best_ckpt=str(precious), best_score=-1.0, keep_ckpt_ids=["../../precious", 1, 5])
    odd: dict[str, Any] = dict(
        message_hub=dict(log_scalars={"train/loss": 3, 7: None}, runtime_info=info),
        param_schedulers=[dict(last_step="x")],
        random_states=[dict(torch=torch.zeros(3), numpy=1, python=[])],
        early_stopping=[1],
        gradients=3,
        schedule="x",
    )
    torch.save({**whole, **odd}, run / "epoch_1.pth")
    saving = ["default_hooks.checkpoint.save_best=tiny/error", "default_hooks.checkpoint.rule=less"]
    options = [*saving, "train_cfg.val_interval=1"]
    assert run_train(config, run, "--resume", "--cfg-options", *options) == 0
    assert precious.read_text() == "keep me"
    assert read_checkpoint(run / "epoch_3.pth")["meta"]["iter"] == 3 * STEPS_PER_EPOCH


def test_a_run_without_a_seed_resumes_with_its_own(
    config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Otherwise the rest of the epoch would have another order."""
    monkeypatch.setenv("TINY_STEPS_FILE", str(tmp_path / "steps.txt"))
    monkeypatch.setenv("TINY_INTERRUPT_AT", "3")
    options = ["--cfg-options", "randomness.seed=None", "max_epochs=1"]
    assert run_train(config, tmp_path / "run", *options) == EXIT_INTERRUPTED
    monkeypatch.delenv("TINY_INTERRUPT_AT")
    assert run_train(config, tmp_path / "run", "--resume", *options) == 0
    seen = (tmp_path / "steps.txt").read_text().split()
    assert sorted(map(int, seen)) == list(range(22))


def test_another_seed_starts_the_epoch_anew(
    config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TINY_INTERRUPT_AT", "3")
    assert run_train(config, tmp_path / "run") == EXIT_INTERRUPTED
    monkeypatch.setenv("TINY_STEPS_FILE", str(tmp_path / "steps.txt"))
    monkeypatch.delenv("TINY_INTERRUPT_AT")
    options = ["--cfg-options", "randomness.seed=1", "max_epochs=1"]
    assert run_train(config, tmp_path / "run", "--resume", *options) == 0
    assert "its order was drawn with the seed 0" in log_of(tmp_path / "run")
    seen = (tmp_path / "steps.txt").read_text().split()
    assert sorted(map(int, seen)) == list(range(22))


def test_logs_that_cannot_be_written_do_not_end_a_training(
    config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*args: Any, **kwargs: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(LocalVisBackend, "add_scalars", full)
    assert run_train(config, tmp_path / "run", "--cfg-options", "max_epochs=1") == 0
    assert log_of(tmp_path / "run").count("LocalVisBackend cannot write") == 1


# ---------------------------------------------------------------- damaged files


@pytest.mark.parametrize(
    "damage",
    [
        "cut",
        "short",
        "flipped",
        "empty",
        "empty pointer",
        "long pointer",
        "dangling pointer",
        "no pointer",
    ],
)
def test_a_damaged_checkpoint_falls_back_to_the_one_before(
    config: Path, tmp_path: Path, damage: str
) -> None:
    run = tmp_path / "run"
    assert run_train(config, run, "--cfg-options", "max_epochs=2") == 0
    last, pointer = run / "epoch_2.pth", run / "last_checkpoint"
    content = last.read_bytes()
    if damage == "cut":
        last.write_bytes(content[:-1])
    elif damage == "short":
        last.write_bytes(content[: len(content) // 2])
    elif damage == "empty":
        last.write_bytes(b"")
    elif damage == "flipped":
        at = content.index(read_checkpoint(last)["state_dict"]["linear.weight"].numpy().tobytes())
        last.write_bytes(content[: at + 2] + bytes([content[at + 2] ^ 64]) + content[at + 3 :])
    elif damage == "empty pointer":
        pointer.write_text("")
    elif damage == "long pointer":
        pointer.write_text("x" * 5000)
    elif damage == "dangling pointer":
        pointer.write_text(str(run / "interrupted.pth"))
    else:
        pointer.unlink()
    assert run_train(config, run, "--resume") == 0
    log = log_of(run)
    if "pointer" in damage:
        assert f"resumed {last}" in log
    else:
        assert f"resumed {run}/epoch_1.pth" in log
        assert "epoch_2.pth is not a PyTorch checkpoint, or is damaged" in log
        broken = run / "epoch_2.pth.broken"
        assert broken.exists() and f"kept as {broken.name}" in log
    assert read_checkpoint(pointer.read_text())["meta"]["iter"] == 3 * STEPS_PER_EPOCH


def test_a_half_written_file_of_a_killed_run_is_removed(config: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    run.mkdir()
    (run / ".epoch_1.pth.99999999.pth").write_bytes(b"half")
    assert run_train(config, run, "--cfg-options", "max_epochs=1") == 0
    assert not list(run.glob(".*"))


def test_checkpoints_of_plain_mmengine_are_resumed_where_they_were_left(
    config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TINY_STEPS_FILE", str(tmp_path / "whole.txt"))
    assert run_train(config, tmp_path / "whole") == 0
    monkeypatch.setenv("TINY_STEPS_FILE", str(tmp_path / "parts.txt"))
    monkeypatch.setenv("TINY_INTERRUPT_AT", "9")
    assert run_train(config, tmp_path / "parts") == EXIT_INTERRUPTED
    monkeypatch.delenv("TINY_INTERRUPT_AT")
    path = tmp_path / "parts" / "interrupted.pth"
    own = ("place", "schedule", "random_states", "early_stopping")
    content = {key: value for key, value in read_checkpoint(path).items() if key not in own}
    torch.save(content, path)
    assert run_train(config, tmp_path / "parts", "--resume") == 0
    assert (tmp_path / "parts.txt").read_text() == (tmp_path / "whole.txt").read_text()
    whole, parts = (read_checkpoint(tmp_path / n / "epoch_3.pth") for n in ("whole", "parts"))
    for key, value in whole["state_dict"].items():
        assert torch.equal(parts["state_dict"][key], value)


def test_a_stopped_run_replaces_its_checkpoint_in_one_step(
    config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = tmp_path / "run"
    for step in ("2", "1"):
        monkeypatch.setenv("TINY_INTERRUPT_AT", step)
        assert run_train(config, run, "--resume") == EXIT_INTERRUPTED
    link = tmp_path / "same_file.pth"
    link.hardlink_to(run / "interrupted.pth")
    before = link.read_bytes()
    assert run_train(config, run, "--resume") == EXIT_INTERRUPTED
    assert link.read_bytes() == before  # the old file was not touched, a new one took its name
    assert read_checkpoint(run / "interrupted.pth")["meta"]["iter"] == 4


# ---------------------------------------------------------------- weights of other models


def detector(**changes: Any) -> Any:
    return MODELS.build(merge(DETECTOR, **changes))


def test_weights_of_another_class_list_and_range(tmp_path: Path) -> None:
    source = detector()
    torch.save({"state_dict": source.state_dict()}, tmp_path / "five.pth")
    other = merge(HEAD, num_classes=4, empty_label=4, pc_range=[0.0, -6, -1, 16, 6, 2.2])
    other["loss_cls"]["class_weights"] = [1, 2, 3, 4]
    model = detector(pts_bbox_head=other)
    with pytest.raises(CheckpointError, match=r"or leave it out \(--drop-mismatched\)"):
        start_from(model, tmp_path / "five.pth")
    before = {key: value.clone() for key, value in model.state_dict().items()}
    report = start_from(model, tmp_path / "five.pth", drop_mismatched=True)
    dropped = [line.removeprefix("dropped: ") for line in report.splitlines()[1:]]
    loaded, stored = model.state_dict(), source.state_dict()
    differing = {key for key in stored if stored[key].shape != loaded[key].shape}
    assert differing and {d.split(" (")[0] for d in dropped} > differing
    assert any(d.startswith("pts_bbox_head.pc_range ([-8.0, ") for d in dropped)
    names = {d.split(" (")[0] for d in dropped}
    for key, value in loaded.items():
        is_grid = key.rsplit(".", 1)[-1] in ("pc_range", "scene_size", "voxel_size", "voxel_num")
        expected = before if key in names or is_grid else stored
        assert torch.equal(value, expected[key]), key


def test_dropping_is_an_option_of_the_command_line_and_the_config(
    config: Path, tmp_path: Path
) -> None:
    weights = tmp_path / "wide.pth"
    torch.save(
        {"state_dict": {"linear.weight": torch.ones(1, 5), "linear.bias": torch.ones(1)}}, weights
    )
    options = ["--cfg-options", "max_epochs=1", "optim_wrapper.optimizer.lr=0.0"]
    start = ["--load-from", str(weights), *options]
    assert run_train(config, tmp_path / "refused", *start) == EXIT_USER_ERROR
    assert run_train(config, tmp_path / "option", "--drop-mismatched", *start) == 0
    child = tmp_path / "child.py"
    child.write_text(
        f"_base_ = {str(config)!r}\nload_from = {str(weights)!r}\ndrop_mismatched = True\n"
    )
    assert run_train(child, tmp_path / "config", *options) == 0
    for name in ("option", "config"):
        stored = read_checkpoint(tmp_path / name / "epoch_1.pth")["state_dict"]
        assert torch.equal(stored["linear.bias"], torch.ones(1))
        assert torch.equal(stored["linear.weight"], torch.full((1, 3), 0.1))
        line = "dropped: linear.weight ((1, 5) in the file, (1, 3) in the model)"
        assert line in log_of(tmp_path / name)


# ---------------------------------------------------------------- pretrained parts


PRETRAINED = dict(
    img_backbone=merge(
        DETECTOR["img_backbone"],
        init_cfg=dict(type="Pretrained", checkpoint="pretrain/nowhere.pth"),
    )
)


def test_a_pretrained_file_is_needed_unless_the_checkpoint_fills_its_part(tmp_path: Path) -> None:
    complete = detector().state_dict()
    model = detector(**PRETRAINED)
    [note] = settle_pretrained(model, complete)
    assert "pretrain/nowhere.pth is not needed" in note and model.img_backbone.init_cfg is None

    with pytest.raises(ConfigError, match=r"model\.img_backbone\.init_cfg needs the pretrained"):
        settle_pretrained(detector(**PRETRAINED), None)
    # weights of a LiDAR detector, or of an image network without its stem
    for partial in ("img_backbone.conv1.weight", "img_backbone."):
        rest = {key: value for key, value in complete.items() if not key.startswith(partial)}
        with pytest.raises(ConfigError, match=r"does not hold img_backbone\.conv1\.weight of that"):
            settle_pretrained(detector(**PRETRAINED), rest)


def test_a_pretrained_file_has_to_hold_the_part(tmp_path: Path) -> None:
    weights = {f"backbone.{k}": v for k, v in detector().img_backbone.state_dict().items()}
    torch.save({"state_dict": weights}, tmp_path / "rcnn.pth")

    def with_prefix(prefix: str | None) -> nn.Module:
        init = dict(type="Pretrained", checkpoint=str(tmp_path / "rcnn.pth"), prefix=prefix)
        return detector(img_backbone=merge(DETECTOR["img_backbone"], init_cfg=init))

    assert settle_pretrained(with_prefix("backbone."), None) == []
    with pytest.raises(ConfigError, match="holds no weights of that part"):
        settle_pretrained(with_prefix(None), None)
    (tmp_path / "rcnn.pth").write_bytes(b"PK\x03\x04 broken")
    with pytest.raises(CheckpointError, match="is not a PyTorch checkpoint"):
        settle_pretrained(with_prefix("backbone."), None)


def test_training_from_weights_that_lack_the_pretrained_part_is_refused(
    config: Path, tmp_path: Path, capsys: Any
) -> None:
    """Another file to start from does not replace a missing pretrained file."""
    torch.save({"state_dict": {"fc.weight": torch.zeros(2)}}, tmp_path / "other.pth")
    code = run_train(
        config, tmp_path / "run", "--load-from", str(tmp_path / "other.pth"), "--cfg-options",
        "model.type=mmdet.ResNet", "model.depth=18", "model.init_cfg.type=Pretrained",
        "model.init_cfg.checkpoint=pretrain/none.pth",
    )  # fmt: skip
    assert code == EXIT_USER_ERROR
    assert "(missing: conv1.weight, " in capsys.readouterr().err
