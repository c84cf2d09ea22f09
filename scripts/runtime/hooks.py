"""Hooks of the training runs: memory in the log, and a clean stop on Ctrl-C or SIGTERM."""

from __future__ import annotations

import os
import resource
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

import torch
import torch.distributed as dist
from mmengine.dist import is_distributed, is_main_process
from mmengine.hooks import Hook
from mmengine.registry import HOOKS
from mmengine.runner import Runner

from scripts.runtime.errors import TrainingInterrupted

INTERRUPTED_NAME = "interrupted.pth"
# How often the processes of a distributed run ask each other whether one was told to stop.
# It costs one small all-reduce, and on GPUs a wait for the queue.
AGREE_EVERY = 10


def peak_memory_mb() -> float:
    """Largest resident memory of this process so far, in MB (10^6 bytes)."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e6  # Linux counts KiB


@HOOKS.register_module()
class HostMemoryHook(Hook):
    """Log the process's peak resident memory in MB as `host_memory`.

    mmengine logs the memory of GPUs only; without one this is the figure of interest.

    Args:
        interval: Iterations between two readings.
    """

    priority = "NORMAL"

    def __init__(self, interval: int = 10) -> None:
        self.interval = interval

    def after_train_iter(
        self, runner: Runner, batch_idx: int, data_batch: Any = None, outputs: Any = None
    ) -> None:
        """Take a reading for the log."""
        if batch_idx == 0 or self.every_n_train_iters(runner, self.interval):
            runner.message_hub.update_scalar("train/host_memory", peak_memory_mb())


class StopOnSignalHook(Hook):
    """On SIGINT or SIGTERM finish the iteration, save a checkpoint that resumes, and stop.

    A second SIGINT stops at once. In a distributed run all processes agree on the iteration, so
    none is left waiting in a collective operation. Training runs inside `installed()`, so that the
    data loader's workers inherit the handler: the terminal's Ctrl-C reaches them too, and without
    it they would die before the last iteration is through.
    """

    priority = "LOWEST"  # after the optimiser's and the schedule's step and the log

    def __init__(self) -> None:
        self._received: signal.Signals | None = None
        self._pid = os.getpid()

    @contextmanager
    def installed(self) -> Iterator[None]:
        """Take over SIGINT and SIGTERM."""
        numbers = (signal.SIGINT, signal.SIGTERM)
        before = [signal.signal(number, self._handle) for number in numbers]
        try:
            yield
        finally:
            for number, handler in zip(numbers, before, strict=True):
                signal.signal(number, handler)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if os.getpid() != self._pid:  # a data-loading process: its parent ends it
            if number == signal.SIGTERM:
                os._exit(0)
            return
        if self._received is not None and number == signal.SIGINT:
            raise KeyboardInterrupt
        self._received = signal.Signals(number)
        if is_main_process():
            print("\nstopping after this iteration; Ctrl-C again stops at once", flush=True)

    def _agreed(self) -> bool:
        """Whether any process was told to stop (all of them ask at the same iteration)."""
        stop = torch.tensor(int(self._received is not None))
        if dist.get_backend() == "nccl":
            stop = stop.cuda()
        dist.all_reduce(stop, op=dist.ReduceOp.MAX)
        return bool(stop.item())

    def after_train_iter(
        self, runner: Runner, batch_idx: int, data_batch: Any = None, outputs: Any = None
    ) -> None:
        """Stop here if told to: the step is complete, its count not yet increased."""
        if is_distributed():
            if (runner.iter + 1) % AGREE_EVERY == 0 and self._agreed():
                self._stop(runner, runner.iter + 1)
        elif self._received is not None:
            self._stop(runner, runner.iter + 1)

    def before_val_epoch(self, runner: Runner) -> None:
        """Do not begin an evaluation when told to stop."""
        if not is_distributed() and self._received is not None:
            self._stop(runner, runner.iter)

    def after_val_iter(
        self, runner: Runner, batch_idx: int, data_batch: Any = None, outputs: Any = None
    ) -> None:
        """Stop in the evaluation between epochs (alone: processes have unequal shares of it)."""
        if not is_distributed() and self._received is not None:
            self._stop(runner, runner.iter)

    def _stop(self, runner: Runner, num_iters: int) -> None:
        """Save with the number of completed iterations and leave the training loop."""
        meta = {"epoch": runner.epoch, "iter": num_iters}
        runner.save_checkpoint(runner.work_dir, INTERRUPTED_NAME, meta=meta)
        if is_main_process():
            path = Path(runner.work_dir, INTERRUPTED_NAME)
            Path(runner.work_dir, "last_checkpoint").write_text(str(path))
        raise TrainingInterrupted(
            f"stopped after {num_iters} iterations and saved "
            f"{Path(runner.work_dir, INTERRUPTED_NAME)}; go on with the same command and --resume"
        )

    def after_train(self, runner: Runner) -> None:
        """A finished run needs its interrupted checkpoint no more."""
        if is_main_process():
            Path(runner.work_dir, INTERRUPTED_NAME).unlink(missing_ok=True)
