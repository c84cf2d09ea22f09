"""Shared parts of the operations' benchmarks: arguments, timing, scenes, tables, aims.

Needs only torch.
"""

from __future__ import annotations

import argparse
import ctypes
import os
import platform
import resource
import statistics
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path

import torch
from torch import Tensor

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results"
#: Time limit of the timed runs of one function, seconds. Baselines of the large sizes take up to
#: ten seconds a run; with this limit `make bench` ends within 20 minutes on two cores.
BUDGET_S = 5.0


def parse_arguments(
    description: str,
    repeats: int,
    sizes: str | None = None,
    dtypes: Sequence[str] | None = None,
    **extra: int,
) -> argparse.Namespace:
    """Parse the command line of a benchmark and set threads and seed.

    Args:
        description: The module's docstring; its first line is shown.
        repeats: Default number of runs of each function.
        sizes: Default of `--sizes`, comma-separated (keys of `decoder_cases.VARIANTS`); None
            for a benchmark without that argument.
        dtypes: Choices of `--dtype`, the default first; None for none.
        **extra: Further integer arguments with their defaults.
    """
    parser = argparse.ArgumentParser(description=description.splitlines()[0])
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--threads", type=int, default=min(2, os.cpu_count() or 1))
    parser.add_argument("--repeats", type=int, default=repeats)
    parser.add_argument("--note", default="", help="a remark for the table, such as other load")
    parser.add_argument(
        "--save", action="store_true", help="write the table under benchmarks/results"
    )
    if sizes:
        parser.add_argument("--sizes", default=sizes, help="comma-separated: t, s, m, l, v1t, v1l")
    if dtypes:
        parser.add_argument("--dtype", choices=dtypes, default=dtypes[0])
    for name, default in extra.items():
        parser.add_argument(f"--{name.replace('_', '-')}", type=int, default=default)
    args = parser.parse_args()
    if args.device == "cuda" and not torch.cuda.is_available():
        parser.error("--device cuda: torch sees no CUDA device here; use --device cpu")
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    return args


class Report:
    """Print lines immediately and collect them for the results file."""

    def __init__(self, name: str, args: argparse.Namespace) -> None:
        self.name, self.args = name, args
        self.lines: list[str] = []
        self.aims: list[str] = []
        self.few_runs: list[str] = []
        #: Measured GFLOP/s of a float32 matrix product and GB/s of a copy.
        self.gigaflops, self.bandwidth = ceilings(args.device)
        self.line(f"# {name} on {args.device}\n")
        given = vars(args).items()
        told = [f"--{key} {value}" for key, value in given if key not in ("note", "save")]
        self.line(
            f"`python benchmarks/bench_{name}.py {' '.join(told)}`,"
            f" {hardware(args.device)}, {datetime.now(timezone.utc):%Y-%m-%d},"
            f" torch {torch.__version__}, commit {_commit()}. Medians of up to {args.repeats} runs"
            f" after a first, as many as fit into {BUDGET_S:g} s, one at least; a first of more"
            f" than {2 * BUDGET_S:g} s is the only one. Ceilings measured in the same run:"
            f" {self.gigaflops:.0f} GFLOP/s (float32 matrix product),"
            f" {self.bandwidth:.1f} GB/s (copy). {args.note}\n"
        )

    def line(self, text: str) -> None:
        print(text, flush=True)
        self.lines.append(text)

    def table(self, header: Sequence[str]) -> None:
        self.line("| " + " | ".join(header) + " |")
        self.line("|---" * len(header) + "|")

    def row(self, *cells: object) -> None:
        self.line("| " + " | ".join(str(cell) for cell in cells) + " |")

    def note_runs(self, case: str, of: Mapping[str, Timing]) -> None:
        """Record the functions of a case that were too slow for all runs; see `write_runs`."""
        for name, timing in of.items():
            if timing.runs < self.args.repeats:
                self.few_runs.append(f"{case} {name} {timing.runs or 'only the first'}")

    def write_runs(self) -> None:
        """Write the recorded functions; call it before their table."""
        if self.few_runs:
            self.line(f"Fewer runs than {self.args.repeats}: {'; '.join(self.few_runs)}.\n")
        self.few_runs.clear()

    def aim(self, name: str, measured: float, goal: float) -> None:
        """Record the comparison `measured >= goal`, which `end` prints."""
        verdict = "ok" if measured >= goal else "short"
        self.aims.append(f"AIM {name} {measured:.3g} >= {goal:g} {verdict}")

    def end(self) -> None:
        self.line("")
        self.write_runs()
        for aim in self.aims:
            self.line(aim)
        if self.args.save:
            RESULTS.mkdir(exist_ok=True)
            dtype = getattr(self.args, "dtype", "float32")
            kind = self.args.device if dtype == "float32" else f"{self.args.device}_{dtype}"
            path = RESULTS / f"{self.name}_{kind}.md"
            path.write_text("\n".join(self.lines) + "\n")


@dataclass(frozen=True)
class Timing:
    """Hold the measurements of a function."""

    ms: float  # median wall time
    runs: int  # number of runs of the median; 0: only the first call was timed
    mib: float  # peak memory above the memory before the call
    result: object  # result of the first call


def timings(functions: Sequence[Callable[[], object]], repeats: int, device: str) -> list[Timing]:
    """Measure time and memory of functions. Runs alternate, so that other load affects all equally.

    The first call of a function is a warm-up. Its time determines how many runs, up to `repeats`,
    fit into `BUDGET_S`. At least one run follows, unless the first call took twice the budget.
    Memory is measured in the first call if that takes a second or more, because its set-up is then
    negligible; otherwise in a separate call, because watching memory takes time.
    """
    results, first, mib = [], [], []
    for function in functions:
        with watched_memory(device) as peak:
            ms, result = timed(function, device)
        results.append(result)
        first.append(ms)
        mib.append(peak[0] if ms >= 1000 else peak_memory_mb(function, device))
    times = _alternating_runs(functions, first, repeats, device)
    return [
        Timing(statistics.median(own or [once]), len(own), peak_mib, result)
        for own, once, peak_mib, result in zip(times, first, mib, results, strict=True)
    ]


def medians_ms(functions: Sequence[Callable[[], object]], repeats: int, device: str) -> list[float]:
    """Return median wall times in milliseconds, measured as in `timings`."""
    first = [timed(function, device)[0] for function in functions]
    times = _alternating_runs(functions, first, repeats, device)
    return [statistics.median(own or [once]) for own, once in zip(times, first, strict=True)]


def _alternating_runs(
    functions: Sequence[Callable[[], object]], first_ms: list[float], repeats: int, device: str
) -> list[list[float]]:
    """Return the times, in milliseconds, of the runs that fit into each function's budget."""
    budget_ms = 1e3 * BUDGET_S
    wanted = [min(repeats, max(int(ms <= 2 * budget_ms), int(budget_ms / ms))) for ms in first_ms]
    times: list[list[float]] = [[] for _ in functions]
    for turn in range(repeats):
        for own, runs, function in zip(times, wanted, functions, strict=True):
            if turn < runs:
                own.append(timed(function, device)[0])
    return times


def timed(function: Callable[[], object], device: str) -> tuple[float, object]:
    _synchronize(device)
    start = time.perf_counter()
    result = function()
    _synchronize(device)
    return 1e3 * (time.perf_counter() - start), result


def peak_memory_mb(function: Callable[[], object], device: str) -> float:
    """Return the peak memory of a call above the memory before it, MiB."""
    with watched_memory(device) as peak:
        kept = function()
        _synchronize(device)
    del kept
    return peak[0]


@contextmanager
def watched_memory(device: str) -> Iterator[list[float]]:
    """Yield a list that afterwards contains the peak memory above the start, MiB."""
    peak: list[float] = []
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        yield peak
        peak.append((torch.cuda.max_memory_allocated() - before) / 2**20)
        return
    page = resource.getpagesize()
    _release_free_memory()

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


def _release_free_memory() -> None:
    """Return freed memory to the system, so that allocating it again is measured."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # glibc only
    if trim is not None:
        trim(0)


def ceilings(device: str) -> tuple[float, float]:
    """Measure the GFLOP/s of a matrix product and the GB/s of a copy (read and written)."""
    size = 1024 if device == "cpu" else 8192
    a = torch.randn(size, size, device=device)
    source = torch.randn(2**25, device=device)
    target = torch.empty_like(source)
    product, copy = medians_ms([lambda: a @ a, lambda: target.copy_(source)], 7, device)
    return 2e-9 * size**3 / product * 1e3, 2e-9 * 4 * source.numel() / copy * 1e3


def hardware(device: str) -> str:
    """Return the name of the processor or GPU."""
    if device == "cuda":
        return torch.cuda.get_device_name()
    cpu = platform.processor() or platform.machine()
    names = Path("/proc/cpuinfo")
    if names.exists():
        rows = [row for row in names.read_text().splitlines() if row.startswith("model name")]
        cpu = rows[0].split(":")[1].strip() if rows else cpu
    return f"{cpu}, {os.cpu_count()} cores"


def street(size: tuple[int, int, int], edge_m: float, free: int = 17) -> Tensor:
    """Return a scene, uint8 [X, Y, Z]: bumpy ground, a road with houses, trees, cars."""
    x_size, y_size, z_size = size
    grid = torch.full(size, free, dtype=torch.uint8)
    ground = max(1, round(0.8 / edge_m))
    x, y = torch.meshgrid(torch.arange(x_size), torch.arange(y_size), indexing="ij")
    height = ground + ((x * edge_m / 17).sin() + (y * edge_m / 11).cos()).round().long()
    grid[torch.arange(z_size) < height.clamp(min=1)[..., None]] = 11
    boxes = (("house", 8, 15, 70), ("tree", 1.6, 16, 120), ("car", 2.4, 4, 60))
    for kind, width_m, label, count in boxes:
        width = max(1, round(width_m / edge_m))
        for _ in range(count):
            i, j = (int(torch.randint(0, n - width, ())) for n in (x_size, y_size))
            if kind == "house" and abs(j + width // 2 - y_size // 2) * edge_m < 9:
                continue
            top = {"house": z_size, "tree": z_size * 3 // 4, "car": ground + round(1.6 / edge_m)}
            low = ground if kind != "tree" else z_size // 3
            high = int(torch.randint(low + 1, top[kind] + 1, ())) if top[kind] > low else low + 1
            grid[i : i + width, j : j + width, low:high] = label
    return grid


def _synchronize(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()


def _commit() -> str:
    done = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], cwd=ROOT, capture_output=True, text=True
    )
    return done.stdout.strip() or "unknown"
