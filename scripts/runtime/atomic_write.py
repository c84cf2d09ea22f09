"""Files written in one step: readers see the old file or the whole new one."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path

from scripts.runtime.errors import ConfigError


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
    except OSError as error:
        if error.filename is not None and Path(os.fsdecode(error.filename)) == temporary:
            # The error names the final file, not the temporary one.
            raise OSError(error.errno, error.strerror, str(path)) from error
        raise
    finally:
        temporary.unlink(missing_ok=True)
    return path


def check_file_target(option: str, path: str | Path) -> None:
    """Refuse a file that could not be written at the end of a long run.

    Raises:
        ConfigError: A folder has the file's name, or the file's folder cannot be written to.
    """
    path = Path(path)
    if path.is_dir():
        raise ConfigError(f"{option} {path} is a folder: name a file in it")
    check_folder_target(option, path.parent)


def check_folder_target(option: str, path: str | Path) -> None:
    """Refuse a folder, existing or not, in which nothing could be written.

    Raises:
        ConfigError: A part of the path is a file, or this user may not write there.
    """
    existing = Path(path).absolute()
    while not existing.exists():
        existing = existing.parent
    if not existing.is_dir():
        raise ConfigError(f"{option} {path}: {existing} is a file, choose a folder")
    if not os.access(existing, os.W_OK | os.X_OK):
        raise ConfigError(f"{option} {path}: {existing} cannot be written to, choose another path")


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
