"""dist_train.sh and dist_val.sh on two CPU processes over gloo."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import train
import val
from scripts.runtime.checkpoint import read_checkpoint
from scripts.runtime.errors import EXIT_USER_ERROR

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]


def launch(script: str, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    env = {
        **os.environ,
        "PYTHON": sys.executable,
        "PYTHONPATH": os.pathsep.join([str(HERE), str(ROOT)]),
        "CUDA_VISIBLE_DEVICES": "",  # the same test everywhere: gloo
        **environment,
    }
    command = ["bash", str(ROOT / script), *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=180, env=env)


@pytest.mark.skipif(torch.cuda.is_available(), reason="compares with this process's CPU training")
def test_two_processes_train_and_score_like_one(config: Path, tmp_path: Path) -> None:
    """The total batch is split, so the averaged gradients, and thus the weights, are the same."""
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
    """One process is told to stop at its third step; both leave after it."""
    work_dir = tmp_path / "run"
    done = launch(
        "dist_train.sh", "2", str(config), "--work-dir", str(work_dir), TINY_INTERRUPT_AT="3"
    )
    assert done.returncode != 0
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
    assert done.returncode != 0
    assert "batch_size 3 (the total over all processes) is not divisible by 2" in done.stderr


@pytest.mark.parametrize("arguments", [[], ["2"], ["zero", "config.py"], ["0", "config.py"]])
@pytest.mark.parametrize("script", ["dist_train.sh", "dist_val.sh"])
def test_wrong_arguments_of_the_scripts(script: str, arguments: list[str]) -> None:
    done = launch(script, *arguments)
    assert done.returncode == EXIT_USER_ERROR
    assert len(done.stderr.strip().splitlines()) == 1
