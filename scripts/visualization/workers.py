"""Threads that draw: each works alone on its piece, with torch's own threading off.

torch shares every operation out among OpenMP threads and waits for all of them after each. The
thousands of small operations of a picture spend more time waiting than computing that way, many
times more where other programs use the processor too. Independent pieces need no waiting, and torch
and the ray caster release the interpreter's lock while they compute.
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
    """Return the threads with torch's threading off, kept for the next pictures."""
    everyone = threading.Barrier(threads)

    def prepare() -> None:
        # A thread takes over the process' setting when it first asks for it: have that done.
        torch.get_num_threads()
        torch.set_num_threads(1)
        everyone.wait()  # keeps this thread from taking another one's turn

    executor = ThreadPoolExecutor(threads, thread_name_prefix="draw")
    for task in [executor.submit(prepare) for _ in range(threads)]:
        task.result()
    # The setting holds per thread, but torch hands the last one on to threads that start later.
    torch.set_num_threads(threads)
    return executor


def parallel_map(function: Callable[[T], R], items: Iterable[T]) -> list[R]:
    """`[function(item) for item in items]` on as many threads as torch is set to use.

    Args:
        function: must not call `parallel_map` itself.
        items: independent pieces of work.
    """
    return list(_pool(torch.get_num_threads()).map(function, items))
