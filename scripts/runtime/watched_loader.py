"""A data loader that signals can interrupt, with clear errors for killed workers."""

from __future__ import annotations

import errno
import multiprocessing.queues
import os
import signal
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from typing import Any, NoReturn

import torch
from torch.utils.data import DataLoader

from loaders.shared_memory import MORE_SHARED_MEMORY, SharedMemoryError
from models.errors import UserError
from scripts.runtime.device_prefetch import prefetched
from scripts.runtime.stop_signals import StopSignals, blocked_signals


class WorkerKilledError(UserError, RuntimeError):
    """A data worker was killed by the system or by a user."""


# Exit codes of a worker that could not send a batch; torch's workers exit with 0 or 1.
_EXIT_NO_SHARED_MEMORY, _EXIT_NOT_SENT = 81, 82
_GRACE_S = 2.0  # wait after a broken connection for the end of its worker
_ABOUT_SHARED_MEMORY = ("No space left on device", "shared memory", "(shm)", "unable to mmap")


class WatchedDataLoader(DataLoader):
    """torch's DataLoader for the entry points.

    - A stop signal raises `StopRequested` while the loader waits for a batch.
    - Workers ignore signals to the process group.
    - A killed worker results in a one-sentence error, never in the middle of an iteration.
    - The same applies to shared memory that is too small for a batch.
    - Worker seeds are drawn from a separate generator. torch's global generator is unchanged, so
      that a resumed run draws the same numbers as an uninterrupted one.
    - Batches are on the model's device; see `prefetched`.
    """

    stop_signals: StopSignals
    device: torch.device | None = None

    @classmethod
    def watch(
        cls,
        loader: DataLoader,
        stop_signals: StopSignals,
        device: torch.device | None = None,
    ) -> WatchedDataLoader:
        """Convert a built DataLoader to this class, in place.

        Args:
            loader: The data loader.
            stop_signals: Signals that may interrupt it.
            device: Device of the batches; None leaves them on their device.
        """
        if not isinstance(loader, cls):
            loader.__class__ = cls  # a built DataLoader cannot be built again from its attributes
        assert isinstance(loader, cls)
        loader.stop_signals = stop_signals
        loader.device = device
        loader.worker_init_fn = WorkerStart(stop_signals.worker_init(loader.worker_init_fn))
        if loader.generator is None:
            loader.generator = torch.Generator().manual_seed(torch.initial_seed() % 2**63)
        return loader

    def __iter__(self) -> Iterator[Any]:  # type: ignore[override]
        """Yield batches on the device.

        Raises:
            StopRequested: A signal arrived while the loader waited.
            WorkerKilledError: A data worker was killed.
            SharedMemoryError: /dev/shm has no space for a batch.
        """
        yield from prefetched(self._batches(), self.device, ahead=self.num_workers > 0)

    def _batches(self) -> Iterator[Any]:
        before = signal.getsignal(signal.SIGCHLD)
        batches: Any = None
        try:
            with blocked_signals():
                batches = super().__iter__()
        except (RuntimeError, OSError, EOFError) as error:
            _explain(error, getattr(self, "_iterator", None))  # workers of the previous epoch
        # torch's handler would raise anywhere in the program; the wait below detects it too.
        signal.signal(signal.SIGCHLD, before if before is not None else signal.SIG_DFL)
        while True:
            try:
                with self.stop_signals.may_interrupt():
                    batch = next(batches)
            except StopIteration:
                return
            except (RuntimeError, OSError, EOFError) as error:
                _explain(error, batches)
            yield batch


class WorkerStart:
    """Initialisation of a data worker: the worker exits if it cannot send a batch.

    torch's queue would print the error and drop the batch, and the main process would wait forever.
    """

    def __init__(self, original: Callable[[int], Any]) -> None:
        self.original = original

    def __call__(self, worker_id: int) -> None:
        """Prepare this worker."""
        queue: Any = multiprocessing.queues.Queue
        queue._on_queue_feeder_error = staticmethod(_leave_without_batch)
        self.original(worker_id)


def _leave_without_batch(error: BaseException, batch: Any) -> None:
    """End a worker that could not send a batch; called in the sending thread."""
    if _is_about_shared_memory(error):
        os._exit(_EXIT_NO_SHARED_MEMORY)
    traceback.print_exception(error)
    sys.stderr.flush()
    os._exit(_EXIT_NOT_SENT)


def _is_about_shared_memory(error: BaseException) -> bool:
    if isinstance(error, OSError) and error.errno == errno.ENOSPC:
        return "/dev/shm" in str(error.filename or "/dev/shm")
    return isinstance(error, RuntimeError) and any(w in str(error) for w in _ABOUT_SHARED_MEMORY)


def _explain(error: Exception, batches: Any) -> NoReturn:
    """Raise the error that explains an error of the loader.

    Raises:
        SharedMemoryError: A worker had no space in /dev/shm.
        WorkerKilledError: A worker was killed.
        Exception: The error itself, if it is not caused by the end of a worker.
    """
    if isinstance(error, UserError):
        raise error
    if _is_about_shared_memory(error):
        sentence = f"/dev/shm has no space for a batch: {MORE_SHARED_MEMORY}"
        raise SharedMemoryError(sentence) from error
    is_broken = isinstance(error, (ConnectionError, EOFError, FileNotFoundError))
    death = _death_of_worker(batches, _GRACE_S if is_broken else 0.0)
    if death is None:
        raise error
    if "/dev/shm" in death:
        raise SharedMemoryError(death) from error
    raise WorkerKilledError(death) from error


def _death_of_worker(batches: Any, patience: float) -> str | None:
    """Describe a worker that was killed or had no shared memory; None if there is none."""
    workers = getattr(batches, "_workers", [])
    end = time.monotonic() + patience
    while time.monotonic() < end and all(worker.is_alive() for worker in workers):
        time.sleep(0.05)
    for worker in workers:
        worker.join(timeout=0)
        code = worker.exitcode
        if code in (_EXIT_NO_SHARED_MEMORY, -signal.SIGBUS):
            return (
                f"data worker {worker.pid} found no space for a batch in /dev/shm: "
                f"{MORE_SHARED_MEMORY}, and continue with --resume"
            )
        if code is None or code >= 0:
            continue
        name = signal.Signals(-code).name
        reason = " (possibly because memory ran out)" if name == "SIGKILL" else ""
        return (
            f"data worker {worker.pid} was killed by {name}{reason}: use fewer workers "
            "(num_workers of the data loader) or smaller caches (cache_mb of the transforms), and "
            "continue with --resume"
        )
    return None
