"""Files written in one step: readers see the old file or the whole new one."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path


def write_atomically(
    path: str | Path, write: Callable[[Path], object], *, durable: bool = False
) -> Path:
    """Let `write` fill a temporary file beside `path`, then move it there.

    A temporary file whose writing failed is removed.

    Args:
        path: The file; missing parent folders are made.
        write: Receives the temporary file's path, which has the suffix of `path`.
        durable: Flush the file to the disk before it is moved, and the folder afterwards, so that
            the new content survives a crash of the machine.

    Returns:
        `path`.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}{path.suffix}")
    try:
        write(temporary)
        if durable:
            _flush(temporary)
        os.replace(temporary, path)
        if durable:
            _flush(path.parent)
    finally:
        temporary.unlink(missing_ok=True)
    return path


def leftovers(folder: str | Path) -> list[Path]:
    """Temporary files of `write_atomically` in a folder, which killed processes left there."""
    found = []
    for path in Path(folder).glob(".*"):
        pid = path.stem.rpartition(".")[2]
        if path.suffix and pid.isdigit() and path.is_file() and not _is_running(int(pid)):
            found.append(path)
    return found


def _is_running(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:  # of another user
        return True
    return True


def write_json(path: str | Path, content: object, indent: int = 0) -> Path:
    """Write JSON in one step."""
    return write_atomically(path, lambda p: p.write_text(json.dumps(content, indent=indent) + "\n"))


def _flush(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
