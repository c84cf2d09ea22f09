"""Trainings in separate processes that start fast.

They are forked from a server that has imported everything, so that a test can kill many of them.
Each is the leader of a process group, like a job of a shell.
"""

from __future__ import annotations

import ctypes
import multiprocessing
import os
import signal
import socket
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
EXIT_NOT_ALLOWED = 77
_context = multiprocessing.get_context("forkserver")
_context.set_forkserver_preload(
    ["train", "loaders.register", "nano_parts", "mmdet.models", "mmdet3d.models", "torch._dynamo"]
)


class Job:
    """Handle of a training process."""

    def __init__(self, arguments: list[str], output: Path, environment: Mapping[str, str]) -> None:
        self.output = output
        self.process = _context.Process(
            target=_run, args=(arguments, str(output), dict(environment))
        )
        self.process.start()

    def wait(self, seconds: float = 60.0) -> int:
        """Wait for the end; return the exit code, negative for a signal."""
        self.process.join(seconds)
        if self.process.exitcode is None:
            self.send(signal.SIGKILL)
            raise AssertionError(f"still running after {seconds} s:\n{self.text()[-3000:]}")
        return self.process.exitcode

    def wait_for(self, words: str, seconds: float = 60.0) -> None:
        """Wait until the output contains some words."""
        end = time.monotonic() + seconds
        while words not in self.text():
            assert self.process.is_alive() and time.monotonic() < end, self.text()[-3000:]
            time.sleep(0.02)

    def send(self, number: signal.Signals, *, group: bool = True) -> None:
        """Send a signal to the process, or to its group."""
        pid = self.process.pid
        assert pid is not None
        try:
            os.killpg(pid, number) if group else os.kill(pid, number)
        except ProcessLookupError:
            pass

    def children(self) -> list[int]:
        """Return the started processes, except for Python's helpers."""
        pid = self.process.pid
        names = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
        lines = {int(n): Path(f"/proc/{n}/cmdline").read_bytes() for n in names}
        return [child for child, line in lines.items() if b"resource_tracker" not in line]

    def text(self) -> str:
        """Return the output."""
        return self.output.read_text() if self.output.exists() else ""


def start(config: Path, work_dir: Path, *options: str, **environment: str) -> Job:
    """Start a training; its steps are recorded in `record.txt` next to the work dir."""
    arguments = ["--config", str(config), "--work-dir", str(work_dir), *options]
    record = work_dir.with_suffix(".txt")
    env = {"NANO_RECORD": str(record), **environment}
    rank = environment.get("RANK", "")
    return Job(arguments, work_dir.with_suffix(f".out{rank}"), env)


def train(config: Path, work_dir: Path, *options: str, **environment: str) -> tuple[int, str]:
    """Train to the end; return the exit code and the output."""
    job = start(config, work_dir, *options, **environment)
    return job.wait(), job.text()


def start_group(
    number: int,
    config: Path,
    work_dir: Path,
    *options: str,
    folders: Sequence[Path] | None = None,
    **environment: str,
) -> list[Job]:
    """Start the processes of a distributed training, optionally in separate folders."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    shared = dict(WORLD_SIZE=str(number), MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    places = [{} if folders is None else {"JOB_FOLDER": str(folders[r])} for r in range(number)]
    return [
        start(
            config,
            work_dir,
            *options,
            **{"RANK": str(r), "LOCAL_RANK": str(r), **shared, **places[r], **environment},
        )
        for r in range(number)
    ]


def _limit_shared_memory(size: str) -> bool:
    """Mount a small /dev/shm for this process; needs the right to mount."""
    libc = ctypes.CDLL(None)
    new_namespace, private = 0x20000, 0x44000  # CLONE_NEWNS; MS_REC | MS_PRIVATE
    return (
        libc.unshare(new_namespace) == 0
        and libc.mount(None, b"/", None, private, None) == 0
        and libc.mount(b"tmpfs", b"/dev/shm", b"tmpfs", 0, f"size={size}".encode()) == 0
    )


def _run(arguments: list[str], output: str, environment: dict[str, str]) -> None:
    os.setsid()
    descriptor = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    os.environ.update(environment)
    os.chdir(environment.get("JOB_FOLDER", "."))
    if "JOB_SHM" in environment and not _limit_shared_memory(environment["JOB_SHM"]):
        sys.exit(EXIT_NOT_ALLOWED)
    import torch

    import train

    torch.set_num_threads(1)
    sys.argv = ["train.py"]
    code = train.main(arguments)
    sys.stdout.flush()
    sys.stderr.flush()
    sys.exit(code)
