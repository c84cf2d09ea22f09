"""Stop signals: a training stops only where it can be resumed, and data workers keep running."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

import torch
from mmengine.dist import is_distributed, is_main_process

from loaders.shared_memory import share

# Signals of terminals (SIGINT, SIGHUP), schedulers (SIGTERM), and Slurm before a time limit.
STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2)
# Signals to group and process arrive together; a second key press comes later.
_SECOND_PRESS_S = 1.0
# Time that a process of a distributed run waits for its samples after a signal.
GRACE_S = 20.0


class StopRequested(BaseException):
    """Raised by the signal handler while the main process waits, between complete operations."""


class StopSignals:
    """Stop signals received by this process, and whether they may interrupt it now.

    Attributes:
        received: The first signal; None until one arrives.
    """

    def __init__(self) -> None:
        self.received: signal.Signals | None = None
        self._received_at = 0.0
        self._pid = os.getpid()
        self._depth = 0
        self._closing = share(torch.ones(1, dtype=torch.uint8))

    @contextmanager
    def installed(self) -> Iterator[None]:
        """Install the signal handlers for the duration of a context."""
        numbers = (*STOP_SIGNALS, signal.SIGALRM)
        before = [signal.signal(number, self._handle) for number in STOP_SIGNALS]
        before.append(signal.signal(signal.SIGALRM, self._give_up))
        self._closing.fill_(0)
        try:
            yield
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
            self._closing.fill_(1)
            for number, handler in zip(numbers, before, strict=True):
                signal.signal(number, handler)

    @property
    def is_installed(self) -> bool:
        """Whether the signal handlers are installed."""
        return not bool(self._closing.item())

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if os.getpid() != self._pid:  # a data worker without its own handlers yet
            return
        if self.received is None:
            self.received = signal.Signals(number)
            self._received_at = time.monotonic()
            if is_main_process():
                text = f"\n{self.received.name}: stopping where the run can be resumed\n"
                os.write(1, text.encode())  # print is not allowed to interrupt itself
            if is_distributed():
                signal.setitimer(signal.ITIMER_REAL, GRACE_S, GRACE_S)
        elif self._is_second_press(number):
            raise KeyboardInterrupt
        # The processes of a distributed run stop together, see `StopOnSignalHook`.
        if self._depth and not is_distributed():
            raise StopRequested

    def _give_up(self, number: int, frame: FrameType | None) -> None:
        """Stop waiting for samples while the other processes wait for this one."""
        if os.getpid() == self._pid and self._depth:
            raise StopRequested

    def _is_second_press(self, number: int) -> bool:
        # torchrun repeats the terminal's SIGINT.
        elapsed = time.monotonic() - self._received_at
        return number == signal.SIGINT and not is_distributed() and elapsed > _SECOND_PRESS_S

    @contextmanager
    def may_interrupt(self) -> Iterator[None]:
        """Allow signals to raise `StopRequested` in a context, including earlier ones."""
        self._depth += 1
        try:
            if self.received is not None and not is_distributed():
                raise StopRequested
            yield
        finally:
            self._depth -= 1

    def worker_init(self, original: Callable[[int], Any] | None) -> Callable[[int], Any]:
        """Return the initialisation of a data worker: `original`, and its own signal handlers."""
        return _WorkerInit(original, self._closing)


class _WorkerInit:
    """Initialisation of a data worker: it ignores signals to the group until its parent ends it."""

    def __init__(self, original: Callable[[int], Any] | None, closing: torch.Tensor) -> None:
        self.original = original
        self.closing = closing

    def __call__(self, worker_id: int) -> None:
        self.parent = os.getppid()
        for number in STOP_SIGNALS:
            # Do not set SIG_IGN for SIGTERM first: it would discard a pending signal.
            is_end = number == signal.SIGTERM
            signal.signal(number, self._on_terminate if is_end else signal.SIG_IGN)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, STOP_SIGNALS)
        if self.original is not None:
            self.original(worker_id)

    def _on_terminate(self, number: int, frame: FrameType | None) -> None:
        if self.closing.item() or os.getppid() != self.parent:
            os._exit(0)


@contextmanager
def blocked_signals() -> Iterator[None]:
    """Block the signals in a context, also in processes started in it until they unblock them."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, STOP_SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
