"""Files written in one step: readers see the old file or the whole new one."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path


def write_atomically(path: str | Path, write: Callable[[Path], object]) -> Path:
    """Let `write` fill a temporary file beside `path`, then move it there.

    A temporary file whose writing failed is removed.

    Args:
        path: The file; missing parent folders are made.
        write: Receives the temporary file's path, which has the suffix of `path`.

    Returns:
        `path`.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}{path.suffix}")
    try:
        write(temporary)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    return path


def write_json(path: str | Path, content: object, indent: int = 0) -> Path:
    """Write JSON in one step."""
    return write_atomically(path, lambda p: p.write_text(json.dumps(content, indent=indent) + "\n"))
