"""dist_train.sh and dist_val.sh on two CPU processes over gloo."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import train
import val
from scripts.runtime.checkpoint import read_checkpoint
from scripts.runtime.errors import EXIT_INTERRUPTED, EXIT_USER_ERROR

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]


def launch(
    script: str, *arguments: str, root: Path = ROOT, folder: Path | None = None, **environment: str
) -> subprocess.CompletedProcess[str]:
    env = {
        **os.environ,
        "PYTHON": sys.executable,
        "PYTHONPATH": os.pathsep.join([str(HERE), str(root)]),
        "CUDA_VISIBLE_DEVICES": "",  # the same test everywhere: gloo
        **environment,
    }
    command = ["bash", str(root / script), *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=180, env=env, cwd=folder)


@pytest.mark.skipif(torch.cuda.is_available(), reason="compares with this process's CPU training")
def test_two_processes_train_and_score_like_one(config: Path, tmp_path: Path) -> None:
    """The total batch is split, so that averaged gradients and weights are equal."""
    short = ["--cfg-options", "max_epochs=1"]
    one, two = tmp_path / "one", tmp_path / "two"
    assert train.main(["--config", str(config), "--work-dir", str(one), *short]) == 0
    done = launch("dist_train.sh", "2", str(config), "--work-dir", str(two), *short)
    assert done.returncode == 0, done.stderr[-3000:]

    weights = {run: (run / "last_checkpoint").read_text() for run in (one, two)}
    first, second = (read_checkpoint(path) for path in weights.values())
    assert first["meta"]["iter"] == second["meta"]["iter"] == 6
    for key, value in first["state_dict"].items():
        torch.testing.assert_close(second["state_dict"][key], value, rtol=1e-5, atol=1e-6)

    # Eleven samples for each of the two.
    out = {name: tmp_path / f"{name}.json" for name in ("alone", "together")}
    arguments = ["--weights", weights[two], "--work-dir", str(two), "--out"]
    assert val.main(["--config", str(config), *arguments, str(out["alone"])]) == 0
    done = launch("dist_val.sh", "2", str(config), *arguments, str(out["together"]))
    assert done.returncode == 0, done.stderr[-3000:]
    alone, together = (json.loads(path.read_text()) for path in out.values())
    assert (alone["processes"], together["processes"]) == (1, 2)
    assert together["metrics"] == pytest.approx(alone["metrics"])


def test_all_processes_stop_together(config: Path, tmp_path: Path) -> None:
    """One process gets a signal at its third step; both stop after it."""
    work_dir = tmp_path / "run"
    done = launch(
        "dist_train.sh", "2", str(config), "--work-dir", str(work_dir), TINY_INTERRUPT_AT="3"
    )
    assert done.returncode == EXIT_INTERRUPTED
    assert "Traceback" not in done.stderr
    assert "stopped after 3 iterations and saved" in done.stderr
    checkpoint = read_checkpoint((work_dir / "last_checkpoint").read_text())
    assert (checkpoint["meta"]["epoch"], checkpoint["meta"]["iter"]) == (0, 3)


def test_batch_that_does_not_divide_is_refused(config: Path, tmp_path: Path) -> None:
    done = launch(
        "dist_train.sh",
        "2",
        str(config),
        "--work-dir",
        str(tmp_path / "run"),
        "--cfg-options",
        "batch_size=3",
    )
    assert done.returncode == EXIT_USER_ERROR
    [line] = sentences(done)  # one for both processes
    assert line.startswith("train.py [rank ")
    assert "batch_size 3 (the total over all processes) is not divisible by 2" in done.stderr


def sentences(done: subprocess.CompletedProcess[str]) -> list[str]:
    """Return the printed error sentences."""
    lines = done.stderr.splitlines()
    return [line for line in lines if line.startswith(("train.py", "val.py", "Traceback"))]


def test_an_error_of_another_process_than_the_first_is_one_sentence(
    config: Path, tmp_path: Path
) -> None:
    """Include errors of its data-loading processes."""
    options = ["train_dataloader.dataset.bad_file=images/17.jpg", "train_dataloader.num_workers=1"]
    arguments = ["--work-dir", str(tmp_path / "run"), "--cfg-options", *options]
    done = launch("dist_train.sh", "2", str(config), *arguments, TINY_BAD_RANK="1")
    assert done.returncode == EXIT_USER_ERROR
    assert sentences(done) == ["train.py [rank 1]: images/17.jpg is broken: write it again"]


def test_a_defect_of_one_process_keeps_its_traceback(config: Path, tmp_path: Path) -> None:
    work_dir = ["--work-dir", str(tmp_path / "run")]
    done = launch("dist_train.sh", "2", str(config), *work_dir, TINY_CRASH_AT="2")
    assert done.returncode == 1
    assert "ZeroDivisionError: a defect in the model" in done.stderr


def test_from_another_folder_and_a_checkout_that_is_left_as_it_is(
    config: Path, tmp_path: Path
) -> None:
    """Relative paths start at the current folder; nothing is written into the source tree."""
    checkout = tmp_path / "checkout"
    kept = shutil.ignore_patterns("__pycache__", "*.so")
    for name in ("models", "loaders", "scripts", "configs"):
        shutil.copytree(ROOT / name, checkout / name, ignore=kept)
    for name in ("train.py", "val.py", "dist_train.sh"):
        shutil.copy(ROOT / name, checkout / name)
    before = sorted(checkout.rglob("*"))
    stand = tmp_path / "stand"
    stand.mkdir()
    shutil.move(config, stand / "my.py")
    done = launch(
        "dist_train.sh", "2", "my.py", "--work-dir", "out", "--cfg-options", "max_epochs=1",
        root=checkout, folder=stand, PYTHONDONTWRITEBYTECODE="1",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    assert (stand / "out" / "last_checkpoint").is_file()
    assert sorted(checkout.rglob("*")) == before
    # mmengine gathers results of metrics in the folder .dist_test and does not remove it.
    assert {path.name for path in stand.iterdir()} - {".dist_test"} == {"my.py", "out"}


def test_a_port_in_use_is_one_sentence(config: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        place = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(taken.getsockname()[1])}
        machines = {"NNODES": "2", "NODE_RANK": "0"}
        done = launch("dist_train.sh", "1", str(config), **machines, **place)
    assert done.returncode == EXIT_USER_ERROR
    assert "the processes cannot connect at 127.0.0.1, port" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("environment", "message"),
    [
        ({"NNODES": "two"}, "NNODES is 'two', expected a whole number from 1"),
        ({"NNODES": "2", "NODE_RANK": ""}, "NODE_RANK is not set: set it on each machine"),
        (
            {"NNODES": "2", "NODE_RANK": "2", "MASTER_ADDR": "a"},
            "NODE_RANK is 2, but NNODES 2 allow 0 to 1",
        ),
    ],
)
def test_wrong_machines(environment: dict[str, str], message: str) -> None:
    done = launch("dist_val.sh", "1", "config.py", **environment)
    assert done.returncode == EXIT_USER_ERROR
    [line] = done.stderr.strip().splitlines()
    assert message in line


@pytest.mark.parametrize("arguments", [[], ["2"], ["zero", "config.py"], ["0", "config.py"]])
@pytest.mark.parametrize("script", ["dist_train.sh", "dist_val.sh"])
def test_wrong_arguments_of_the_scripts(script: str, arguments: list[str]) -> None:
    done = launch(script, *arguments)
    assert done.returncode == EXIT_USER_ERROR
    assert len(done.stderr.strip().splitlines()) == 1
