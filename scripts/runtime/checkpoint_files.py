"""Checkpoints of a work dir: atomic writing, search, and setting aside of damaged files."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from models.errors import UserError
from scripts.runtime.atomic_write import leftovers, write_atomically
from scripts.runtime.checkpoint import CheckpointError, allow_checkpoint_classes, read_checkpoint

POINTER_NAME = "last_checkpoint"
# For the state between two regular checkpoints: after a signal, or before an evaluation.
INTERRUPTED_NAME = "interrupted.pth"


class CheckpointWriteError(UserError, OSError):
    """A checkpoint could not be written; previous checkpoints are unchanged.

    Attributes:
        missing_bytes: Additional space that is needed; None if space is not the reason.
    """

    def __init__(self, message: str, missing_bytes: int | None = None) -> None:
        super().__init__(message)
        self.missing_bytes = missing_bytes


@dataclass(frozen=True)
class Search:
    """Result of a search for the newest checkpoint.

    Attributes:
        path: The newest intact checkpoint that can be resumed; None if there is none.
        notes: Sentences for the log about damaged files and what was done with them.
    """

    path: str | None
    notes: list[str] = field(default_factory=list)


def stored_bytes(content: Any) -> int:
    """Return the size in bytes of a checkpoint's tensors on disk."""
    storages: dict[int, int] = {}

    def visit(node: Any) -> None:
        if isinstance(node, torch.Tensor):
            storage = node.untyped_storage()
            storages[storage.data_ptr()] = storage.nbytes()
        elif isinstance(node, Mapping):
            for value in node.values():
                visit(value)
        elif isinstance(node, (list, tuple)):
            for value in node:
                visit(value)

    visit(content)
    return sum(storages.values())


def write_checkpoint(content: Mapping[str, Any], path: str | Path) -> None:
    """Write a checkpoint atomically; an existing file stays intact until it is replaced.

    Args:
        content: Object to save with `torch.save`.
        path: The file.

    Raises:
        CheckpointWriteError: The disk is full, or the folder is not writable.
    """
    path = Path(path)
    size = stored_bytes(content)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        free = shutil.disk_usage(path.parent).free
        if free < size:
            raise CheckpointWriteError(
                f"{path} was not written: it needs {_megabytes(size)}, and {path.parent} has "
                f"{_megabytes(free)} left: free some space",
                size - free,
            )
        write_atomically(path, lambda temporary: _save(content, temporary), durable=True)
    except CheckpointWriteError:
        raise
    except OSError as error:
        raise CheckpointWriteError(*_explain(path, error, size)) from error


def _save(content: Mapping[str, Any], path: Path) -> None:
    with open(path, "wb") as stream:
        try:
            torch.save(content, stream)
        except RuntimeError as error:
            # torch's writer replaces the file's error by its own.
            hidden = error.__context__ or error.__cause__
            raise hidden if isinstance(hidden, OSError) else error from None


def _explain(path: Path, error: OSError, size: int) -> tuple[str, int | None]:
    is_full = error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
    way_out = "free some space" if is_full else f"make {path.parent} writable"
    reason = error.strerror or str(error)
    return f"{path} was not written: {reason}: {way_out}", size if is_full else None


def _megabytes(size: int) -> str:
    return f"{size / 1e6:.1f} MB"


def write_pointer(work_dir: str | Path, path: str | Path) -> None:
    """Write the name of a checkpoint to `last_checkpoint` of a work dir.

    Raises:
        CheckpointWriteError: The file cannot be written.
    """
    try:
        write_atomically(
            Path(work_dir, POINTER_NAME), lambda p: p.write_text(str(path)), durable=True
        )
    except OSError as error:
        raise CheckpointWriteError(*_explain(Path(work_dir, POINTER_NAME), error, 0)) from error


def remove_leftovers(work_dir: str | Path) -> None:
    """Remove incomplete files that a killed run left in its work dir."""
    for path in leftovers(work_dir):
        path.unlink(missing_ok=True)


def pointed_checkpoint(work_dir: str | Path, folders: Sequence[Path]) -> Path | None:
    """Return the checkpoint named in `last_checkpoint` of a work dir, if it is in one of the
    folders.

    `last_checkpoint` holds a path of the machine and folder that wrote it. Only the file name is
    used, so that a moved or copied work dir refers to its own checkpoints.
    """
    try:
        text = Path(work_dir, POINTER_NAME).read_text().strip()
    except (OSError, UnicodeDecodeError):
        return None
    name = Path(text).name
    return next((folder / name for folder in folders if name and _is_file(folder / name)), None)


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except (OSError, ValueError):  # not a valid file name
        return False


def find_newest_checkpoint(work_dir: str | Path, more_folders: Iterable[Path] = ()) -> Search:
    """Find the newest intact checkpoint of a work dir that can be resumed.

    The checkpoint named in `last_checkpoint` is tried first, then the others by descending
    iteration. Damaged files are renamed to end in `.broken`.

    Args:
        work_dir: Work dir of the run.
        more_folders: Further folders with checkpoints of this run.
    """
    folders = [Path(work_dir), *more_folders]
    notes: list[str] = []
    pointed = pointed_checkpoint(work_dir, folders)
    if pointed is not None and _is_resumable(pointed, notes):
        return Search(str(pointed), notes)
    others = sorted({path for folder in folders for path in _candidates(folder)} - {pointed})
    ranked = sorted(others, key=_progress, reverse=True)
    for path in ranked:
        if _is_resumable(path, notes):
            if pointed is not None or Path(work_dir, POINTER_NAME).exists():
                notes.append(f"{POINTER_NAME} names no complete checkpoint: continuing from {path}")
            return Search(str(path), notes)
    return Search(None, notes)


def _candidates(folder: Path) -> Iterable[Path]:
    return (p for p in folder.glob("*.pth") if p.is_file() and not p.name.startswith("."))


def stored_facts(path: str | Path) -> dict[str, Any]:
    """Return the `meta` of a checkpoint, read without its tensors; empty if this fails."""
    allow_checkpoint_classes()
    try:
        content = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
        return dict(content["meta"])
    except Exception:  # the regular read reports the error
        return {}


def _progress(path: Path) -> tuple[int, float]:
    """Return the iteration and the modification time of a checkpoint."""
    iteration = stored_facts(path).get("iter")
    return iteration if type(iteration) is int else -1, path.stat().st_mtime


def _is_resumable(path: Path, notes: list[str]) -> bool:
    """Return whether a checkpoint is intact and can be resumed; set a damaged file aside."""
    try:
        return "optimizer" in read_checkpoint(path)
    except CheckpointError as error:
        aside = path.with_name(path.name + ".broken")
        note = f"{error}; it is not resumed"
        try:
            os.replace(path, aside)
            note += f" and kept as {aside.name}"
        except OSError:
            pass
        notes.append(note)
        return False
