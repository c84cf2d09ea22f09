"""A data loader that signals can interrupt while it waits, and that explains dead workers."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from typing import Any

import torch
from torch.utils.data import DataLoader

from models.errors import UserError
from scripts.runtime.stop_signals import StopSignals, blocked_signals


class WorkerKilledError(UserError, RuntimeError):
    """A data worker was killed, by the system or by a person."""


class WatchedDataLoader(DataLoader):
    """torch's DataLoader as the entry points use it.

    - While it waits for a batch, a stop signal raises `StopRequested`.
    - Its workers outlive signals to the process group.
    - A worker that was killed ends in one sentence, and never in the middle of an iteration.
    - The seed of its workers is drawn from a generator of its own: starting them leaves torch's
      global generator as it is, so that a resumed run draws what an undisturbed one draws.
    """

    stop_signals: StopSignals

    @classmethod
    def watch(cls, loader: DataLoader, stop_signals: StopSignals) -> WatchedDataLoader:
        """Turn a built DataLoader into one of this class, in place."""
        if not isinstance(loader, cls):
            loader.__class__ = cls  # torch forbids to build it anew from its own parts
        assert isinstance(loader, cls)
        loader.stop_signals = stop_signals
        loader.worker_init_fn = stop_signals.worker_init(loader.worker_init_fn)
        if loader.generator is None:
            loader.generator = torch.Generator().manual_seed(torch.initial_seed() % 2**63)
        return loader

    def __iter__(self) -> Iterator[Any]:  # type: ignore[override]
        """Yield batches.

        Raises:
            StopRequested: A signal arrived while the loader waited.
            WorkerKilledError: A data worker was killed.
        """
        before = signal.getsignal(signal.SIGCHLD)
        with blocked_signals():
            batches: Any = super().__iter__()
        # torch's handler would raise at any place of the program; the wait below notices as well.
        signal.signal(signal.SIGCHLD, before if before is not None else signal.SIG_DFL)
        while True:
            try:
                with self.stop_signals.may_interrupt():
                    batch = next(batches)
            except StopIteration:
                return
            except (RuntimeError, OSError, EOFError) as error:
                sentence = _death_of_worker(batches)
                if sentence is None:
                    raise
                raise WorkerKilledError(sentence) from error
            yield batch


def _death_of_worker(batches: Any) -> str | None:
    """Say which worker was killed by a signal; None if none was."""
    for worker in getattr(batches, "_workers", []):
        worker.join(timeout=0)
        if worker.exitcode is None or worker.exitcode >= 0:
            continue
        name = signal.Signals(-worker.exitcode).name
        reason = " (the system does so when memory runs out)" if name == "SIGKILL" else ""
        return (
            f"data worker {worker.pid} was killed by {name}{reason}: use fewer workers "
            "(num_workers of the data loader) or smaller caches (cache_mb of the transforms), and "
            "go on with --resume"
        )
    return None
