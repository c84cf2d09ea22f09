"""Workers end with the process that started them."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from scripts.runtime.command_line import CHECKOUT

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="a function of Linux")

PARENT = """
import multiprocessing, sys, time
from scripts.runtime.parent_process import end_with_parent

def work(path):
    end_with_parent()
    with open(path, "w") as file:
        file.write(f"{multiprocessing.current_process().pid}\\n")
    time.sleep(60)

worker = multiprocessing.get_context("fork").Process(target=work, args=(sys.argv[1],), daemon=True)
worker.start()
time.sleep(60)
"""


def is_running(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False
    return state != "Z"


def test_a_worker_ends_with_a_killed_parent(tmp_path: Path) -> None:
    told = tmp_path / "pid"
    parent = subprocess.Popen([sys.executable, "-c", PARENT, str(told)], cwd=CHECKOUT)
    deadline = time.monotonic() + 50
    while not told.is_file() or "\n" not in told.read_text():
        assert time.monotonic() < deadline and parent.poll() is None
        time.sleep(0.05)
    worker = int(told.read_text())
    assert is_running(worker)
    os.kill(parent.pid, signal.SIGKILL)
    parent.wait()
    while is_running(worker):
        assert time.monotonic() < deadline
        time.sleep(0.05)
