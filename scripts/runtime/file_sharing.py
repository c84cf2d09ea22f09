"""Copies of the first process's files for machines that do not share its disk."""

from __future__ import annotations

import os
from pathlib import Path

import torch
import torch.distributed as dist
from mmengine.dist import get_comm_device, is_distributed, is_main_process

from scripts.runtime.agreement import of_every_process

CHUNK_BYTES = 64 << 20


def share_file(path: str, *, by_time: bool) -> None:
    """Copy a file of the first process to every machine that does not have it.

    All processes must call this. A copy gets the modification time of the original.

    Args:
        path: The file, with the same path on all machines; missing folders are created.
        by_time: Whether two files are considered equal by size and time, or by size only.

    Raises:
        OSError: The file cannot be read or written; raised on all processes.
    """
    if not is_distributed():
        return
    times = of_every_process(_identity(path))
    facts = [fact if by_time or fact is None else fact[:1] for fact in times]
    if times[0] is None or all(fact == facts[0] for fact in facts):
        return
    writes = facts[dist.get_rank()] != facts[0] and os.environ.get("LOCAL_RANK", "0") == "0"
    failure: OSError | None = None
    try:
        _broadcast(path, times[0][0], writes)
        if writes:
            os.utime(path, ns=(times[0][1], times[0][1]))
    except OSError as error:
        failure = error
    for other in of_every_process(failure):
        if other is not None:
            raise other


def _identity(path: str) -> tuple[int, int] | None:
    try:
        status = os.stat(path)
    except OSError:
        return None
    return status.st_size, status.st_mtime_ns


def _broadcast(path: str, size: int, writes: bool) -> None:
    """Send a file in parts; raise an error only after the last part, so that no process waits."""
    failure: OSError | None = None
    part = Path(f"{path}.part")
    if writes:
        try:
            part.parent.mkdir(parents=True, exist_ok=True)
            part.write_bytes(b"")
        except OSError as error:
            failure = error
    for start in range(0, size, CHUNK_BYTES):
        chunk = torch.zeros(min(CHUNK_BYTES, size - start), dtype=torch.uint8)
        try:
            if is_main_process():
                chunk = torch.frombuffer(_read(path, start, len(chunk)), dtype=torch.uint8)
        except OSError as error:
            failure = error
        chunk = chunk.to(get_comm_device())
        dist.broadcast(chunk, 0)
        if writes and failure is None:
            try:
                with part.open("ab") as stream:
                    stream.write(chunk.cpu().numpy().tobytes())
            except OSError as error:
                failure = error
    if failure is not None:
        raise failure
    if writes:
        part.replace(path)


def _read(path: str, start: int, size: int) -> bytearray:
    buffer = bytearray(size)
    with open(path, "rb") as stream:
        stream.seek(start)
        stream.readinto(buffer)
    return buffer
