"""Atomic writes: readers see the old file or the complete new one."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path

from scripts.runtime.errors import ConfigError


def write_atomically(
    path: str | Path, write: Callable[[Path], object], *, durable: bool = False
) -> Path:
    """Write a temporary file next to `path` with `write`, then rename it to `path`.

    The temporary file is removed if writing fails.

    Args:
        path: The file; missing parent folders are created.
        write: Called with the path of the temporary file, which has the suffix of `path`.
        durable: Flush the file to disk before the renaming, and the folder after it, so that the
            new content survives a crash of the machine.

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
    except OSError as error:
        if error.filename is not None and Path(os.fsdecode(error.filename)) == temporary:
            # The error names the final file, not the temporary one.
            raise OSError(error.errno, error.strerror, str(path)) from error
        raise
    finally:
        temporary.unlink(missing_ok=True)
    return path


def check_file_target(option: str, path: str | Path) -> None:
    """Check before a long run that a file can be written.

    Raises:
        ConfigError: The path is a folder, or the file's folder is not writable.
    """
    path = Path(path)
    if path.is_dir():
        raise ConfigError(f"{option} {path} is a folder: give a file")
    check_folder_target(option, path.parent)


def check_folder_target(option: str, path: str | Path) -> None:
    """Check that files can be written to a folder, which may not exist yet.

    Raises:
        ConfigError: A part of the path is a file, or this user has no permission to write there.
    """
    existing = Path(path).absolute()
    while not existing.exists():
        existing = existing.parent
    if not existing.is_dir():
        raise ConfigError(f"{option} {path}: {existing} is a file, choose a folder")
    if not os.access(existing, os.W_OK | os.X_OK):
        raise ConfigError(f"{option} {path}: {existing} is not writable: choose another path")


def leftovers(folder: str | Path) -> list[Path]:
    """Return the temporary files of `write_atomically` in a folder that killed processes left
    behind.
    """
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
    except PermissionError:  # a process of another user
        return True
    return True


def write_json(path: str | Path, content: object, indent: int = 0) -> Path:
    """Write JSON atomically."""
    return write_atomically(path, lambda p: p.write_text(json.dumps(content, indent=indent) + "\n"))


def _flush(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
