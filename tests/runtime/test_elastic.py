"""A job of torchrun that loses a machine continues with the remaining ones."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from scripts.drills.parts import RECORD, write_config

ROOT = Path(__file__).resolve().parents[2]
EPOCHS, STEPS = 12, 6


def _agent(port: int, config: Path, folder: Path, name: str) -> subprocess.Popen[str]:
    """Start torchrun as one machine of a job of one or two."""
    options = ["--nnodes", "1:2", "--nproc-per-node", "1", "--max-restarts", "3"]
    options += ["--rdzv-backend", "c10d", "--rdzv-endpoint", f"localhost:{port}"]
    options += ["--rdzv-conf", "join_timeout=120,last_call_timeout=15"]
    command = [sys.executable, "-m", "torch.distributed.run", *options, str(ROOT / "train.py")]
    env = {**os.environ, RECORD: str(folder / f"{name}.steps"), "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        [*command, str(config), "--work-dir", str(folder / "run"), "--resume"],
        env=env | {"PYTHONPATH": str(ROOT), "CUDA_VISIBLE_DEVICES": ""},
        stdout=(folder / f"{name}.out").open("w"),
        stderr=subprocess.STDOUT,
        text=True,
    )


def _iterations(folder: Path, name: str) -> list[int]:
    path = folder / f"{name}.steps"
    lines = path.read_text().splitlines() if path.exists() else []
    return [int(line.split()[1]) for line in lines]


@pytest.mark.slow
def test_the_machine_that_is_left_completes_the_training(tmp_path: Path) -> None:
    config = write_config(tmp_path, "nano", EPOCHS)
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        port = probe.getsockname()[1]
    first = _agent(port, config, tmp_path, "first")
    time.sleep(5)  # the first one hosts the meeting
    second = _agent(port, config, tmp_path, "second")
    try:
        end = time.monotonic() + 120
        while len(_iterations(tmp_path, "second")) < 2 * STEPS + 1:
            assert first.poll() is None and second.poll() is None and time.monotonic() < end
            time.sleep(0.1)
        task = Path(f"/proc/{second.pid}/task/{second.pid}/children")
        for pid in [second.pid, *map(int, task.read_text().split())]:
            os.kill(pid, signal.SIGKILL)
        assert first.wait(240) == 0, (tmp_path / "first.out").read_text()[-3000:]
    finally:
        for agent in (first, second):
            agent.kill()
    done = _iterations(tmp_path, "first")
    assert set(done) == set(range(EPOCHS * STEPS))
    assert len(done) < len(set(done)) + STEPS  # repeated: at most those since a checkpoint
    assert "epochs, " in (tmp_path / "first.out").read_text().split("resumed ", 1)[1]
