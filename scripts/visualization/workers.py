"""Threads for drawing: each processes its own pieces, with torch's own threading off.

torch splits every operation over OpenMP threads and waits for all of them. With the thousands of
small operations of a picture, this waiting takes longer than the computation, and much longer if
other programs use the processor. Independent pieces need no waiting; torch and the ray caster
release the interpreter's lock while they compute.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from typing import TypeVar

import torch

T = TypeVar("T")
R = TypeVar("R")


@lru_cache(maxsize=4)
def _pool(threads: int) -> ThreadPoolExecutor:
    """Return the threads with torch's threading off; they are cached."""
    everyone = threading.Barrier(threads)

    def prepare() -> None:
        # A thread copies the process's setting on first use; do this before changing it.
        torch.get_num_threads()
        torch.set_num_threads(1)
        everyone.wait()  # one call per thread

    executor = ThreadPoolExecutor(threads, thread_name_prefix="draw")
    for task in [executor.submit(prepare) for _ in range(threads)]:
        task.result()
    # The setting is per thread, but torch passes the last value to threads that start later.
    torch.set_num_threads(threads)
    return executor


def parallel_map(function: Callable[[T], R], items: Iterable[T]) -> list[R]:
    """Return `[function(item) for item in items]`, computed on as many threads as torch uses.

    Args:
        function: must not call `parallel_map` itself.
        items: independent pieces of work.
    """
    return list(_pool(torch.get_num_threads()).map(function, items))
