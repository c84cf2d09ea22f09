"""Trainings in processes that start fast.

They are forked from a server that has imported all modules, and run train.py as a script. Each
process leads a process group, like a shell's job.
"""

from __future__ import annotations

import multiprocessing
import os
import runpy
import signal
import socket
import sys
import time
from collections.abc import Mapping
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
_context = multiprocessing.get_context("forkserver")
_context.set_forkserver_preload(
    [
        "scripts.drills.parts", "scripts.runtime.register", "scripts.runtime.runner",
        "loaders.register", "models.register", "mmdet.models", "torch._dynamo",
    ]
)  # fmt: skip


class Training:
    """One training on one or several processes.

    Args:
        config: Config file.
        work_dir: Work dir; output and step lists of the processes are written next to it.
        processes: Number of processes.
        environment: Environment variables for all processes.
    """

    def __init__(
        self, config: Path, work_dir: Path, processes: int, environment: Mapping[str, str]
    ) -> None:
        self.work_dir, self.number = work_dir, processes
        shared: dict[str, str] = dict(environment)
        if processes > 1:
            shared |= dict(
                WORLD_SIZE=str(processes), MASTER_ADDR="127.0.0.1", MASTER_PORT=str(_free_port())
            )
        arguments = ["--config", str(config), "--work-dir", str(work_dir), "--resume"]
        self.processes = []
        for rank in range(processes):
            own = {"DRILL_RECORD": str(record_of(work_dir, rank))}
            if processes > 1:
                own |= dict(RANK=str(rank), LOCAL_RANK=str(rank))
            target = (arguments, str(self.output(rank)), shared | own)
            self.processes.append(_context.Process(target=_run, args=target))
        for process in self.processes:
            process.start()

    def output(self, rank: int) -> Path:
        """Return the file with the output of a process."""
        return self.work_dir.with_suffix(f".{rank}.out")

    @property
    def is_running(self) -> bool:
        """Whether any process runs."""
        return any(process.is_alive() for process in self.processes)

    def wait(self, seconds: float) -> list[int | None]:
        """Wait for the end; return the exit codes, negative for a signal, None if still running."""
        end = time.monotonic() + seconds
        for process in self.processes:
            process.join(max(0.0, end - time.monotonic()))
        return [process.exitcode for process in self.processes]

    def send(self, number: int, rank: int | None = None, *, group: bool = False) -> None:
        """Send a signal to one or all processes; with `group`, also to their data workers."""
        for index, process in enumerate(self.processes):
            if rank not in (None, index) or process.pid is None or not process.is_alive():
                continue
            try:
                os.killpg(process.pid, number) if group else os.kill(process.pid, number)
            except ProcessLookupError:
                pass

    def end(self) -> None:
        """Kill the processes that are still running."""
        self.send(signal.SIGKILL, group=True)
        self.wait(10)


def warm_up() -> None:
    """Start the server that trainings are forked from, and wait until its imports are done."""
    process = _context.Process(target=int)
    process.start()
    process.join()


def record_of(work_dir: Path, rank: int) -> Path:
    """Return the file that lists the steps of a process over all starts."""
    return work_dir.with_suffix(f".{rank}.steps")


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _run(arguments: list[str], output: str, environment: dict[str, str]) -> None:
    os.setsid()
    descriptor = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    os.environ.update(environment)
    import torch

    torch.set_num_threads(1)
    sys.argv = ["train.py", *arguments]
    runpy.run_path(str(ROOT / "train.py"), run_name="__main__")
