"""Measurements of a model: rates, stages, and counts per frame."""

from __future__ import annotations

import gc
import itertools
import statistics
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch

from models.detectors import OPUS
from scripts.timings.counts import (
    gigaflop_by_stage,
    launches_and_waits,
    parameters_by_part,
    peak_memory_mib,
    reset_peak_memory,
)
from scripts.timings.stages import Ledger, watched

Batch = dict[str, Any]
#: Batches that are measured even beyond the time limit, up to PATIENCE times the limit.
MIN_FRAMES, PATIENCE = 3, 3


@dataclass(frozen=True)
class Rate:
    """Speed of one way to run a model.

    Attributes:
        mode: Way to run the model.
        samples: Number of measured samples.
        ms: Milliseconds of each batch.
        batch_size: Samples of a batch.
        peak_mib: Peak memory of the host and the device by name.
    """

    mode: str
    samples: int
    ms: list[float]
    batch_size: int = 1
    peak_mib: dict[str, float] = field(default_factory=dict)

    def per_second(self, percentile: float = 50) -> float:
        """Return a percentile of the samples per second."""
        # slow batches give the low percentiles
        return 1e3 * self.batch_size / _percentile(self.ms, 100 - percentile)


def _percentile(values: list[float], percent: float) -> float:
    """Return a percentile, interpolated between the values."""
    ordered = sorted(values)
    place = (len(ordered) - 1) * percent / 100
    low = int(place)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] + (ordered[high] - ordered[low]) * (place - low)


@dataclass(frozen=True)
class Anatomy:
    """Costs of a frame by stage.

    Attributes:
        ms: Median milliseconds, with the device synchronised at every stage boundary.
        gigaflop: 10^9 floating-point operations.
        parameters: Number of parameters by part.
        launches: Number of kernel launches and copies by the host; None on a CPU.
        waits: Number of waits of the host for the device; None on a CPU.
    """

    ms: dict[str, float]
    gigaflop: dict[str, float]
    parameters: dict[str, int]
    launches: float | None = None
    waits: float | None = None


class Stopwatch:
    """Measurement of a model's frames.

    Args:
        model: Model in eval mode, on its device.
        warmup: Largest number of warm-up batches; they take at most a quarter of `seconds`.
        samples: Largest number of samples to measure.
        seconds: Time limit of a measurement; `MIN_FRAMES` batches may take `PATIENCE` times as
            long.
    """

    def __init__(self, model: OPUS, warmup: int, samples: int, seconds: float) -> None:
        self.model = model
        self.device = next(model.parameters()).device
        self.warmup = warmup
        self.samples = samples
        self.seconds = seconds

    def rate(self, mode: str, batches: Iterable[Batch], batch_size: int) -> Rate:
        """Measure single batches, from the batch in host memory to the predictions."""
        times: list[float] = []
        count = 0
        frames = self._warmed_up(batches)
        with _resting_collector():
            begin = time.perf_counter()
            for batch in frames:
                start = self._now()
                self._frame(batch)
                times.append(1e3 * (self._now() - start))
                count += len(batch["data_samples"])
                if self._ends(count, len(times), begin):
                    break
        return Rate(mode, count, times, batch_size, peak_memory_mib(self.device))

    def rate_with_loader(self, mode: str, batches: Iterable[Batch], batch_size: int) -> Rate:
        """Measure the total time, including the data loader."""
        times: list[float] = []
        count = 0
        frames = self._warmed_up(batches)
        begin = start = self._now()
        for batch in frames:
            self._frame(batch)
            now = self._now()
            times.append(1e3 * (now - start))
            start = now
            count += len(batch["data_samples"])
            if self._ends(count, len(times), begin):
                break
        mean = statistics.fmean(times)  # a loader prefetches: single times mean little
        return Rate(mode, count, [mean] * len(times), batch_size, peak_memory_mib(self.device))

    def anatomy(self, batches: Iterable[Batch], frames: int = 15) -> Anatomy:
        """Measure the stages of frames; count their operations, launches and waits."""
        stream = self._warmed_up(batches)
        ledger = Ledger(self._now)
        spent: list[dict[str, float]] = []
        begin = time.perf_counter()
        with watched(self.model, ledger), _resting_collector():
            for batch in itertools.islice(stream, min(frames, self.samples)):
                self._frame(batch)
                spent.append(ledger.take())
                if self._is_over(len(spent), begin):
                    break
        names = dict.fromkeys(name for frame in spent for name in frame)
        ms = {
            name: 1e3 * statistics.median(frame.get(name, 0.0) for frame in spent) for name in names
        }
        gigaflop = gigaflop_by_stage(self.model, lambda: self._frame(next(stream)))
        launches = waits = None
        if self.device.type == "cuda":
            launches, waits = launches_and_waits(lambda: self._frame(next(stream)))
        return Anatomy(ms, gigaflop, parameters_by_part(self.model), launches, waits)

    def _warmed_up(self, batches: Iterable[Batch]) -> Iterator[Batch]:
        """Run the first batches and return the rest."""
        reset_peak_memory(self.device)
        stream = iter(batches)
        begin = self._now()
        for batch in itertools.islice(stream, self.warmup):
            self._frame(batch)
            if self._now() - begin > self.seconds / 4:
                break
        return stream

    @torch.no_grad()
    def _frame(self, batch: Batch) -> None:
        self.model.test_step(batch)

    def _now(self) -> float:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        return time.perf_counter()

    def _ends(self, samples: int, frames: int, begin: float) -> bool:
        return samples >= self.samples or self._is_over(frames, begin)

    def _is_over(self, frames: int, begin: float) -> bool:
        elapsed = time.perf_counter() - begin
        return elapsed > self.seconds * (1 if frames >= MIN_FRAMES else PATIENCE)


@contextmanager
def _resting_collector() -> Iterator[None]:
    """Disable Python's garbage collection in a context."""
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


@contextmanager
def streaming(model: OPUS, on: bool) -> Iterator[OPUS]:
    """Run a model with or without streaming, starting with an empty cache."""
    before = model.streaming
    model.streaming = on
    model.eval()
    try:
        yield model
    finally:
        model.streaming = before
        model.eval()
