"""Times of calls on a GPU: by events, without synchronisation between calls, eager and captured."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

Call = Callable[[], object]

_ROUNDS = 5
_ROUND_S = 0.1  # approximate duration of calls between two events


@dataclass(frozen=True)
class Times:
    """Times of a call in milliseconds.

    Attributes:
        eager: Time when called from Python.
        captured: Time as a replayed CUDA graph; None if not captured, or if capture failed.
    """

    eager: float
    captured: float | None


def measure(calls: Sequence[Call], device: str, captures: bool = True) -> Times:
    """Return the times of a call in the median round.

    Args:
        calls: The same call with different inputs. They alternate, so that no input stays in the
            GPU's cache.
        device: `'cuda'`, or `'cpu'` to test this code.
        captures: Whether to capture the calls too.
    """
    for call in calls:
        call()
    if device != "cuda":
        return Times(_median(lambda: _on_cpu(calls)), None)
    eager = _median(lambda: _on_gpu(calls))
    return Times(eager, _captured(calls) if captures else None)


def _captured(calls: Sequence[Call]) -> float | None:
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for call in calls:
            call()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    try:
        with torch.cuda.graph(graph):
            for call in calls:
                call()
    except RuntimeError:  # the call synchronises with the device
        torch.cuda.synchronize()
        return None
    return _median(lambda: _on_gpu([graph.replay])) / len(calls)


def _median(round_ms: Callable[[], float]) -> float:
    return statistics.median(round_ms() for _ in range(_ROUNDS))


def _on_gpu(calls: Sequence[Call]) -> float:
    def run(times: int) -> float:
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        for _ in range(times):
            for call in calls:
                call()
        end.record()
        end.synchronize()
        return float(start.elapsed_time(end)) / (times * len(calls))

    once = max(run(1), 1e-3)
    return run(max(1, min(200, int(1e3 * _ROUND_S / (once * len(calls))))))


def _on_cpu(calls: Sequence[Call]) -> float:
    start = time.perf_counter()
    for call in calls:
        call()
    return 1e3 * (time.perf_counter() - start) / len(calls)
