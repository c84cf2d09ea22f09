"""Hooks of training runs: host memory in the log, and a clean stop on a signal."""

from __future__ import annotations

import resource
from pathlib import Path
from typing import Any

from mmengine.dist import is_main_process
from mmengine.hooks import Hook
from mmengine.registry import HOOKS
from mmengine.runner import Runner

from scripts.runtime.agreement import any_process
from scripts.runtime.checkpoint_files import INTERRUPTED_NAME, pointed_checkpoint
from scripts.runtime.stop_signals import StopRequested


def peak_memory_mb() -> float:
    """Return the largest resident memory of this process so far, in MB (10^6 bytes)."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e6  # Linux counts KiB


@HOOKS.register_module()
class HostMemoryHook(Hook):
    """Hook that logs the process's peak resident memory in MB as `host_memory`.

    mmengine logs only GPU memory; without a GPU, host memory is the limit.

    Args:
        interval: Iterations between two readings.
    """

    priority = "NORMAL"

    def __init__(self, interval: int = 10) -> None:
        self.interval = interval

    def after_train_iter(
        self, runner: Runner, batch_idx: int, data_batch: Any = None, outputs: Any = None
    ) -> None:
        """Record the peak memory for the log."""
        if batch_idx == 0 or self.every_n_train_iters(runner, self.interval):
            runner.message_hub.update_scalar("train/host_memory", peak_memory_mb())


class StopOnSignalHook(Hook):
    """Hook that, on a signal, finishes the iteration, saves a checkpoint to resume, and stops.

    In a distributed run, all processes agree on stopping after every iteration, so that none is
    left waiting in a collective operation.
    """

    priority = "LOWEST"  # after the steps of optimiser and schedule, and after logging

    def after_train_iter(
        self, runner: Any, batch_idx: int, data_batch: Any = None, outputs: Any = None
    ) -> None:
        """Stop after a signal. The step is complete, but not yet counted."""
        if any_process(runner.stop_signals.received is not None):
            runner.stop(runner.epoch, runner.iter + 1)

    def after_val_iter(
        self, runner: Any, batch_idx: int, data_batch: Any = None, outputs: Any = None
    ) -> None:
        """Leave an evaluation after a signal; see `StoppableEvaluator`."""
        signals = runner.stop_signals
        if signals.is_installed and signals.received is not None:
            any_process(True)
            raise StopRequested

    def after_train(self, runner: Any) -> None:
        """Remove the checkpoint of an interruption once a regular one holds the final state."""
        if not is_main_process():
            return
        path = Path(runner.work_dir, INTERRUPTED_NAME)
        pointed = pointed_checkpoint(runner.work_dir, [path.parent, *runner.checkpoint_folders])
        if pointed is not None and pointed != path:
            path.unlink(missing_ok=True)
