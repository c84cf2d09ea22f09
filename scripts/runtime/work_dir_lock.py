"""Lock that allows only one training at a time in a work dir."""

from __future__ import annotations

import errno
import fcntl
import logging
import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from mmengine.logging import print_log

from scripts.runtime.agreement import of_every_process
from scripts.runtime.errors import ConfigError
from scripts.runtime.launch import Launch

LOCK_NAME = ".lock"
PATIENCE_S = 5.0  # a stopped or killed process may still be exiting


@contextmanager
def locked_work_dir(work_dir: str | os.PathLike[str], launch: Launch) -> Iterator[None]:
    """Lock a work dir against other trainings for the duration of a context.

    The first process of a run holds a record lock (`fcntl`) on a file in it. The system releases
    the lock when the process ends, however it ends, and data workers do not inherit it. A file left
    behind therefore locks nothing. On file systems without locks a warning is logged.

    Args:
        work_dir: The folder; it is created if it is missing.
        launch: Rank and number of processes; all processes must call this.

    Raises:
        ConfigError: Another process holds the lock; raised on all processes.
        OSError: The folder cannot be created or written.
    """
    folder = Path(work_dir)
    is_new = not folder.exists()
    held: int | None = None
    failure: Exception | None = None
    if launch.is_main:
        try:
            held = _acquire(folder)
        except (ConfigError, OSError) as error:
            failure = error
    failure = failure or of_every_process(failure)[0]
    if failure is not None:
        raise failure
    try:
        yield
    finally:
        if held is not None:
            (folder / LOCK_NAME).unlink(missing_ok=True)
            os.close(held)
            if is_new and not any(folder.iterdir()):
                folder.rmdir()  # the run failed before it wrote anything


def _acquire(folder: Path) -> int | None:
    """Return the descriptor of the locked file; None if the file system has no locks."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / LOCK_NAME
    end = time.monotonic() + PATIENCE_S
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            owner = os.pread(descriptor, 200, 0).decode(errors="replace").strip()
            os.close(descriptor)
            if error.errno not in (errno.EACCES, errno.EAGAIN):
                print_log(
                    f"{folder}: the file system has no locks ({error.strerror}); make sure that no "
                    "other training writes there",
                    "current",
                    logging.WARNING,
                )
                return None
            if time.monotonic() > end:
                raise ConfigError(
                    f"{folder} is in use by another training ({owner or 'just started'}):"
                    " wait until it ends, stop it, or give another --work-dir"
                ) from None
            time.sleep(0.1)
            continue
        if _is_at(descriptor, path):
            os.ftruncate(descriptor, 0)
            os.pwrite(descriptor, f"process {os.getpid()} on {socket.gethostname()}\n".encode(), 0)
            return descriptor
        os.close(descriptor)  # its owner has just removed it


def _is_at(descriptor: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), path.stat())
    except FileNotFoundError:
        return False
