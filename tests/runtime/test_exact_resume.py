"""An interrupted training ends with bitwise the same weights as an undisturbed one.

The tests use small real models, augmentation, dropout and a worker process. Steps are identified by
samples and learning rate, evaluations by their number.
"""

from __future__ import annotations

import math
import os
import signal
import time
from pathlib import Path
from typing import Any

import jobs
import pytest
import torch
from nano_parts import NUM_SAMPLES, write_config

from scripts.runtime.checkpoint import read_checkpoint
from scripts.runtime.errors import EXIT_INTERRUPTED, EXIT_USER_ERROR

ROOT = Path(__file__).resolve().parents[2]


def state_of(work_dir: Path) -> dict[str, Any]:
    return read_checkpoint(work_dir / Path((work_dir / "last_checkpoint").read_text()).name)


def steps(work_dir: Path) -> dict[int, list[str]]:
    """Return learning rate and samples by iteration; repeated iterations must be equal."""
    done: dict[int, list[str]] = {}
    for line in work_dir.with_suffix(".txt").read_text().splitlines():
        kind, *words = line.split()
        if kind == "step":
            assert done.setdefault(int(words[1]), words[2:]) == words[2:]
    return done


def evaluations(work_dir: Path) -> int:
    return work_dir.with_suffix(".txt").read_text().count("evaluation")


def samples_by_epoch(work_dir: Path) -> list[list[str]]:
    """Return the samples of every epoch without those that fill up its last step."""
    epochs: dict[str, list[str]] = {}
    for line in work_dir.with_suffix(".txt").read_text().splitlines():
        kind, *words = line.split()
        if kind == "step":
            epochs.setdefault(words[0], []).extend(words[3:])
    for samples in epochs.values():
        assert samples[NUM_SAMPLES:] == samples[: len(samples) - NUM_SAMPLES]
    return [samples[:NUM_SAMPLES] for samples in epochs.values()]


def assert_same(a: Any, b: Any, path: str = "") -> None:
    if isinstance(a, torch.Tensor):
        assert torch.equal(a, b), path
    elif isinstance(a, dict):
        assert a.keys() == b.keys(), path
        for key in a:
            assert_same(a[key], b[key], f"{path}.{key}")
    elif isinstance(a, (list, tuple)):
        assert len(a) == len(b), path
        for index, (x, y) in enumerate(zip(a, b, strict=True)):
            assert_same(x, y, f"{path}[{index}]")
    else:
        assert a == b, path


def assert_same_end(whole: Path, parts: Path) -> None:
    first, second = state_of(whole), state_of(parts)
    for key in ("state_dict", "optimizer", "param_schedulers", "random_states", "place"):
        assert_same(first[key], second[key], key)
    assert_same(first.get("ema_state_dict"), second.get("ema_state_dict"))
    assert steps(parts) == steps(whole)
    assert not (parts / "interrupted.pth").exists()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("exact")


@pytest.fixture(scope="module")
def config(folder: Path) -> Path:
    return write_config(folder, ROOT)


@pytest.fixture(scope="module")
def whole(folder: Path, config: Path) -> Path:
    code, text = jobs.train(config, folder / "whole")
    assert code == 0, text[-3000:]
    assert len(steps(folder / "whole")) == 18 and evaluations(folder / "whole") == 3
    return folder / "whole"


def test_interrupted_at_every_kind_of_place(folder: Path, config: Path, whole: Path) -> None:
    """Interrupt a step, an evaluation and a save, by signals to the process and its group."""
    parts = folder / "parts"
    places = [
        ("SIGTERM", "start", "", EXIT_INTERRUPTED, "after 0 iterations"),  # workers just start
        ("SIGKILL", "before3", "", -9, ""),
        ("SIGUSR1", "after5", "", EXIT_INTERRUPTED, "after 6 iterations"),  # the end of an epoch
        ("SIGTERM", "before8", "group", EXIT_INTERRUPTED, "after 9 iterations"),
        ("SIGKILL", "save12", "", -9, ""),
        ("SIGHUP", "val2.1", "group", EXIT_INTERRUPTED, "after 12 iterations"),
        ("SIGKILL", "before14", "group", -9, ""),
        ("SIGINT", "before_val3", "group", EXIT_INTERRUPTED, "after 18 iterations"),
    ]
    for name, place, group, expected, words in places:
        disturbance = dict(NANO_SIGNAL=name, NANO_AT=place, NANO_TO_GROUP=group)
        code, text = jobs.train(config, parts, "--resume", **disturbance)
        assert code == expected, text[-3000:]
        assert words in text or expected < 0
    code, text = jobs.train(config, parts, "--resume")
    assert code == 0, text[-3000:]
    assert_same_end(whole, parts)
    assert evaluations(parts) == 3

    code, text = jobs.train(config, parts, "--resume")  # nothing is left to do
    assert code == 0 and evaluations(parts) == 3
    assert_same_end(whole, parts)


@pytest.mark.parametrize(
    ("kind", "extra", "place", "name"),
    [
        ("v1", "custom_hooks = [dict(type='NanoHook'), dict(type='EMAHook')]", "val1.1", "SIGINT"),
        ("v2_fusion", "optim_wrapper['accumulative_counts'] = 3", "after2", "SIGUSR2"),
        ("dcd", "train_dataloader['num_workers'] = 0", "before7", "SIGKILL"),
    ],
    ids=["V1 with averaged weights", "fusion with accumulation", "density-aware in one process"],
)
def test_other_models_and_options(
    folder: Path, kind: str, extra: str, place: str, name: str
) -> None:
    config = write_config(folder, ROOT, kind, extra=extra + "\n")
    short = ["--cfg-options", "max_epochs=2"]
    runs = [folder / f"{kind}_{part}" for part in ("whole", "parts")]
    assert jobs.train(config, runs[0], *short)[0] == 0
    assert jobs.train(config, runs[1], *short, NANO_SIGNAL=name, NANO_AT=place)[0] != 0
    code, text = jobs.train(config, runs[1], *short, "--resume")
    assert code == 0, text[-3000:]
    assert_same_end(*runs)
    assert evaluations(runs[1]) == 2


def test_a_slow_sample_does_not_hold_a_stop_up(folder: Path, config: Path, whole: Path) -> None:
    run = folder / "slow"
    job = jobs.start(config, run, NANO_SLOW="7")  # in the fifth step
    job.wait_for("[1][4/6]")
    job.send(signal.SIGTERM)
    assert job.wait(20) == EXIT_INTERRUPTED, job.text()[-3000:]
    assert "stopped after 4 iterations" in job.text()
    assert jobs.train(config, run, "--resume")[0] == 0
    assert_same_end(whole, run)


def test_a_second_ctrl_c_stops_at_once(folder: Path, config: Path) -> None:
    job = jobs.start(config, folder / "twice", NANO_SIGNAL="SIGSTOP", NANO_AT="before2")
    job.wait_for("[1][2/6]")
    for _ in range(2):
        job.send(signal.SIGINT, group=False)
        time.sleep(1.2)
        job.send(signal.SIGCONT)
    assert job.wait(20) == EXIT_INTERRUPTED


@pytest.mark.parametrize("batch", [1, 4])
def test_another_batch_size_goes_on_at_the_same_sample(
    folder: Path, config: Path, whole: Path, batch: int
) -> None:
    run = folder / f"batch{batch}"
    disturbance = dict(NANO_SIGNAL="SIGINT", NANO_AT="after7")
    assert jobs.train(config, run, **disturbance)[0] == EXIT_INTERRUPTED
    code, text = jobs.train(config, run, "--resume", "--cfg-options", f"batch_size={batch}")
    assert code == 0, text[-3000:]
    lines = [line.split() for line in run.with_suffix(".txt").read_text().splitlines()]
    # every sample once an epoch, in the order of the undisturbed run
    assert samples_by_epoch(run) == samples_by_epoch(whole)
    per_epoch = {1: 11, 4: 3}[batch]
    assert state_of(run)["meta"]["iter"] == 3 * per_epoch
    # the cosine by epoch: its rates of the second and third epoch (base 1e-4, minimum 1e-7)
    rates = [float(line[3]) for line in lines if line[0] == "step" and line[1] == "2"]
    factor = (1 + math.cos(math.pi * 2 / 3)) / 2
    assert rates == pytest.approx([1e-7 + (1e-4 - 1e-7) * factor] * per_epoch, rel=1e-3)


def test_a_finished_run_continues_with_more_epochs_and_another_rate(
    folder: Path, config: Path
) -> None:
    """The learning rates equal those of a run that was configured so from the start."""
    run = folder / "longer"
    assert jobs.train(config, run, "--cfg-options", "max_epochs=2")[0] == 0
    options = ["max_epochs=4", "optim_wrapper.optimizer.lr=1e-2"]
    code, text = jobs.train(config, run, "--resume", "--cfg-options", *options)
    assert code == 0, text[-3000:]
    assert "lr 0.0001 in the checkpoint, 0.001 now" in text
    rates = [float(words[0]) for _, words in sorted(steps(run).items())]
    for epoch in (2, 3):
        planned = 1e-6 + (1e-3 - 1e-6) * (1 + math.cos(math.pi * epoch / 4)) / 2
        assert rates[6 * epoch : 6 * epoch + 6] == pytest.approx([planned] * 6)
    assert evaluations(run) == 4


def test_steps_that_are_not_finite(folder: Path, config: Path, whole: Path) -> None:
    one = folder / "one_bad"
    code, text = jobs.train(config, one, "--cfg-options", "max_epochs=1", NANO_BAD="3")
    assert code == 0, text[-3000:]
    assert "iteration 2 skipped: the gradient of img_backbone." in text
    assert "samples token4, token3" in text and "1 iterations skipped so far" in text
    weights = state_of(one)["state_dict"]
    assert all(bool(value.isfinite().all()) for value in weights.values())

    code, text = jobs.train(config, one, "--resume", NANO_BAD="all")
    assert code == EXIT_USER_ERROR
    [sentence] = [line for line in text.splitlines() if line.startswith("train.py: ")]
    assert "the last 10 were not finite" in sentence and "epoch_1.pth is kept" in sentence
    assert [path.name for path in one.glob("*.pth")] == ["epoch_1.pth"]
    assert_same(state_of(one)["state_dict"], weights)

    wild = folder / "wild"
    patience = (
        "custom_hooks=[dict(type='NanoHook'), dict(type='FiniteStepsHook', max_consecutive=3)]"
    )
    impatient = folder / "impatient.py"
    impatient.write_text(f"_base_ = {str(config)!r}\n{patience}\n")
    code, text = jobs.train(impatient, wild, "--cfg-options", "optim_wrapper.optimizer.lr=1e20")
    assert code == EXIT_USER_ERROR and not list(wild.glob("*.pth"))
    assert "the last 3 were not finite" in text


def test_a_full_disk_keeps_the_last_good_checkpoint(folder: Path, config: Path) -> None:
    run = folder / "full"
    short = ["--cfg-options", "max_epochs=2"]
    code, text = jobs.train(config, run, *short, NANO_FULL_AT="7")
    assert code == EXIT_USER_ERROR, text[-3000:]
    [sentence] = [line for line in text.splitlines() if line.startswith("train.py: ")]
    assert "the last checkpoint was not written" in sentence and "free some" in sentence
    assert [path.name for path in run.glob("*.pth")] == ["epoch_1.pth"]
    assert jobs.train(config, run, *short, "--resume")[0] == 0
    assert state_of(run)["meta"]["iter"] == 12


def test_a_killed_worker_is_named(folder: Path, config: Path) -> None:
    job = jobs.start(config, folder / "killed", NANO_SLOW="7")
    job.wait_for("[1][4/6]")
    [worker] = job.children()
    os.kill(worker, signal.SIGKILL)
    assert job.wait(30) == EXIT_USER_ERROR
    assert f"data worker {worker} was killed by SIGKILL" in job.text()
    assert "Traceback" not in job.text()


def test_two_processes_stop_and_resume_as_one(folder: Path, config: Path) -> None:
    runs = [folder / f"two_{part}" for part in ("whole", "parts")]
    short = ["--cfg-options", "max_epochs=2"]

    def train(run: Path, *options: str, **disturbance: Any) -> list[int]:
        group = jobs.start_group(2, config, run, *short, *options, **disturbance)
        return [job.wait() for job in group]

    assert train(runs[0]) == [0, 0]
    for place in ("before3", "val1.0", "before9"):
        disturbance = dict(NANO_SIGNAL="SIGTERM", NANO_AT=place)
        assert train(runs[1], "--resume", **disturbance) == [EXIT_INTERRUPTED] * 2, place
    # without a common disk: the second process has no file to resume
    away = [folder, folder / "other_machine"]
    away[1].mkdir()
    assert train(runs[1], "--resume", "--work-dir", runs[1].name, folders=away) == [0, 0]
    assert not list(away[1].rglob("*.pth"))
    first, second = (state_of(run) for run in runs)
    for key in ("state_dict", "optimizer", "param_schedulers", "random_states", "place"):
        assert_same(first[key], second[key], key)
    assert evaluations(runs[1]) == 2
