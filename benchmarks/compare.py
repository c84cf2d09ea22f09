"""What the benchmarks of the decoder's operations share: arguments, timing, tables, aims.

Runs of the compared functions alternate, so that a busy machine slows all of them. Times are
medians after a warm-up; memory is the most that one more call holds above what was held before.
"""

from __future__ import annotations

import argparse
import platform
import resource
import statistics
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import date
from pathlib import Path

import torch
from torch import Tensor

Functions = dict[str, Callable[[], Tensor]]


@dataclass(frozen=True)
class Arguments:
    device: torch.device
    dtype: str
    sizes: list[str]
    repeats: int
    out: Path | None


@dataclass(frozen=True)
class Row:
    """Milliseconds and peak MiB of every function in one case."""

    case: str
    ms: dict[str, float]
    mib: dict[str, float]
    gigaflop: float = 0.0  # of work that must be done
    gigabytes: float = 0.0  # that must be moved

    def ratio(self, other: str) -> float:
        return self.ms[other] / self.ms["ours"]


def parse(doc: str, sizes: str, dtypes: Sequence[str] = ("float32",)) -> Arguments:
    parser = argparse.ArgumentParser(description=doc.splitlines()[0])
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--dtype", default=dtypes[0], choices=dtypes)
    parser.add_argument("--sizes", default=sizes, help="comma-separated, out of decoder_cases.py")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--out", type=Path, help="append the table to this file")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    device = torch.device(args.device)
    return Arguments(device, args.dtype, args.sizes.split(","), args.repeats, args.out)


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def measure(functions: dict[str, Callable[[], object]], args: Arguments) -> dict[str, float]:
    """Median milliseconds of each function; those far slower than the first run less often."""
    times: dict[str, list[float]] = {name: [] for name in functions}
    for function in functions.values():
        function()
    for turn in range(args.repeats):
        for name, function in functions.items():
            slow = times[name] and min(times[name]) > 10 * min(next(iter(times.values())))
            if slow and turn >= max(3, args.repeats // 3):
                continue
            _wait(args.device)
            start = time.perf_counter()
            function()
            _wait(args.device)
            times[name].append(time.perf_counter() - start)
    return {name: 1e3 * statistics.median(values) for name, values in times.items()}


@contextmanager
def _watched(device: torch.device) -> Iterator[list[float]]:
    """Yields a list that holds, afterwards, the MiB that were held at most above the start."""
    peak: list[float] = []
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        yield peak
        peak.append((torch.cuda.max_memory_allocated(device) - before) / 2**20)
        return
    page = resource.getpagesize()

    def resident() -> int:
        return int(Path("/proc/self/statm").read_text().split()[1]) * page

    before, most, done = resident(), [0], threading.Event()

    def watch() -> None:
        while not done.wait(0.001):
            most[0] = max(most[0], resident())

    thread = threading.Thread(target=watch)
    thread.start()
    yield peak
    done.set()
    thread.join()
    peak.append(max(0.0, (most[0] - before) / 2**20))


def peak_mib(functions: dict[str, Callable[[], object]], args: Arguments) -> dict[str, float]:
    result = {}
    for name, function in functions.items():
        with _watched(args.device) as peak:
            kept = function()
            _wait(args.device)
        del kept
        result[name] = peak[0]
    return result


def forward_and_backward(
    case: str, functions: Functions, leaves: list[Tensor], args: Arguments, gigaflop: float = 0.0,
    gigabytes: float = 0.0,
) -> list[Row]:  # fmt: skip
    """One row without gradients, and one with those by all leaves."""

    def without(function: Callable[[], Tensor]) -> Callable[[], Tensor]:
        def call() -> Tensor:
            with torch.no_grad():
                return function()

        return call

    def both(function: Callable[[], Tensor], grad: Tensor) -> Callable[[], object]:
        return lambda: torch.autograd.grad(function(), leaves, grad)

    forward: dict[str, Callable[[], object]] = {n: without(f) for n, f in functions.items()}
    with torch.no_grad():
        grad = torch.randn_like(next(iter(functions.values()))())
    gradients = {name: both(function, grad) for name, function in functions.items()}
    return [
        Row(f"{case} forward", measure(forward, args), peak_mib(forward, args), gigaflop,
            gigabytes),
        Row(f"{case} both", measure(gradients, args), peak_mib(gradients, args)),
    ]  # fmt: skip


def ceilings(args: Arguments) -> tuple[float, float]:
    """Measured GFLOP/s of a matrix product and GB/s of a copy (read and written)."""
    size = 1024 if args.device.type == "cpu" else 8192
    a = torch.randn(size, size, device=args.device)
    source = torch.randn(2**25, device=args.device)
    target = torch.empty_like(source)
    ms = measure({"product": lambda: a @ a, "copy": lambda: target.copy_(source)}, args)
    return 2e-9 * size**3 / ms["product"] * 1e3, 2e-9 * 4 * source.numel() / ms["copy"] * 1e3


def hardware(args: Arguments) -> str:
    if args.device.type == "cuda":
        return torch.cuda.get_device_name(args.device)
    name = platform.processor() or platform.machine()
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            name = line.split(":")[1].strip()
            break
    return f"{name}, {torch.get_num_threads()} thread(s)"


def report(title: str, rows: list[Row], args: Arguments) -> None:
    """Prints the table, and appends it to the file that was asked for."""
    names = list(rows[0].ms)
    peak_flops, peak_bytes = ceilings(args)
    lines = [
        f"## {title}",
        "",
        f"{hardware(args)}; torch {torch.__version__}; {args.dtype}; {date.today()}; median of "
        f"{args.repeats}; measured ceilings {peak_flops:.0f} GFLOP/s, {peak_bytes:.1f} GB/s",
        "",
        "| case | " + " | ".join(f"{name} ms" for name in names)
        + " | " + " | ".join(f"{name} MiB" for name in names) + " | of the ceiling |",
        "|---" * (2 * len(names) + 2) + "|",
    ]  # fmt: skip
    for row in rows:
        share = []
        if row.gigaflop:
            share.append(f"{row.gigaflop / row.ms['ours'] * 1e3 / peak_flops:.0%} of GFLOP/s")
        if row.gigabytes:
            share.append(f"{row.gigabytes / row.ms['ours'] * 1e3 / peak_bytes:.0%} of GB/s")
        cells = [f"{row.ms[name]:.1f}" for name in names]
        cells += [f"{row.mib[name]:.0f}" for name in names]
        lines.append(f"| {row.case} | " + " | ".join([*cells, ", ".join(share)]) + " |")
    print("\n".join(lines), flush=True)
    if args.out:
        with args.out.open("a") as file:
            file.write("\n".join(lines) + "\n\n")


def aim(args: Arguments, name: str, measured: float, wanted: float) -> None:
    """One line per aim."""
    verdict = "ok" if measured >= wanted else "short"
    line = f"AIM {name} {measured:.2f} >= {wanted:g} {verdict}"
    print(line, flush=True)
    if args.out:
        with args.out.open("a") as file:
            file.write(line + "\n\n")


def row_of(rows: list[Row], case: str) -> Row | None:
    return next((row for row in rows if row.case == case), None)
