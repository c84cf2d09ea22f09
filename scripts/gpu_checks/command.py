"""Check the code on a GPU: build, compare with reference implementations, time, write one table.

    python -m scripts.gpu_check [--sizes t,l] [--minutes 8] [--out TABLE.md] [--device cpu]

Needs only torch and a CUDA toolkit; MMEngine and pytest are used if they are installed. The table
is written after every line, so that an interrupted check keeps its results. The exit code is 1 if
an operation differs from its reference implementation. Without a GPU, the command only prints a
message; `--device cpu --sizes small` tests the command itself.
"""

from __future__ import annotations

import argparse
import functools
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from datetime import datetime, timezone
from pathlib import Path

from scripts.runtime.atomic_write import write_atomically
from scripts.runtime.command_line import CommandParser, number_from, run_command
from scripts.runtime.errors import ConfigError

ROOT = Path(__file__).resolve().parents[2]
TABLE = ROOT / "benchmarks" / "results" / "gpu_check.md"
_SHARE_OF_BUILD, _SHARE_OF_TESTS = 0.5, 0.3


class Table:
    """A text file that is written to disk after every line.

    Args:
        path: Path of the file.
        minutes: Time limit for all steps together.
    """

    def __init__(self, path: Path, minutes: float) -> None:
        self.path, self.end = path, time.monotonic() + 60 * minutes
        self.lines: list[str] = []

    def left_s(self) -> float:
        """Return the remaining seconds."""
        return self.end - time.monotonic()

    def add(self, *lines: str) -> None:
        """Add lines and print them."""
        self.lines += lines
        print(*lines, sep="\n", flush=True)
        text = "\n".join(self.lines) + "\n"
        self.path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(self.path, lambda path: path.write_text(text))

    def row(self, *cells: object) -> None:
        """Add a row of a table."""
        self.add("| " + " | ".join(str(cell) for cell in cells) + " |")

    def head(self, *cells: str) -> None:
        """Begin a table."""
        self.add("", "| " + " | ".join(cells) + " |", "|---" * len(cells) + "|")


def build(table: Table) -> None:
    """Build the extension for this machine's GPU.

    Raises:
        ConfigError: The build fails, or takes more than half of the time limit.
    """
    start = time.monotonic()
    environment = dict(os.environ, MAX_JOBS=str(os.cpu_count() or 1))
    try:
        done = subprocess.run(
            [sys.executable, "setup.py", "-q", "build_ext", "--inplace"],
            cwd=ROOT, env=environment, capture_output=True, text=True, check=False,
            timeout=_SHARE_OF_BUILD * table.left_s(),
        )  # fmt: skip
    except subprocess.TimeoutExpired as error:
        raise ConfigError(f"the build took more than {error.timeout:.0f} s") from None
    if done.returncode:
        raise ConfigError(f"the build failed: {(done.stdout + done.stderr)[-2000:]}")
    table.add(f"Built in {time.monotonic() - start:.0f} s.")


def run_tests(table: Table) -> None:
    """Run the operations' tests, if pytest and the tests' imports are installed."""
    command = [sys.executable, "-m", "pytest", "tests/ops", "-k", "cuda and not cpu", "-q", "-x"]
    try:
        done = subprocess.run(
            [*command, "-p", "no:cacheprovider"], cwd=ROOT, capture_output=True, text=True,
            check=False, timeout=_SHARE_OF_TESTS * table.left_s(),
        )  # fmt: skip
    except subprocess.TimeoutExpired as error:
        table.add("", f"The operations' tests took more than {error.timeout:.0f} s.")
        return
    lines = (done.stdout + done.stderr).strip().splitlines() or ["no output"]
    failed = [line for line in lines if line.startswith(("FAILED", "ERROR"))]
    table.add("", f"Tests of the operations: {lines[-1].strip('= ')}", *failed)


def compare_operations(table: Table, sizes: Sequence[str], device: str) -> bool:
    """Compare operations with reference implementations and time them; return whether all agree."""
    from scripts.gpu_checks.operations import SIZES, largest_error, make_cases
    from scripts.gpu_checks.timing import measure

    agree = True
    table.head("operation", "difference from the reference", "tolerance", "")
    for case in make_cases(SIZES["small"], device):
        error = largest_error(case)
        is_right = error <= case.tolerance
        agree &= is_right
        verdict = "ok" if is_right else "WRONG"
        table.row(case.name, f"{error:.1e}", f"{case.tolerance:.0e}", verdict)
    for name in sizes:
        table.head(f"operation, sizes of {name}", "ms", "captured, ms", "with gradients, ms")
        for case in make_cases(SIZES[name], device):
            if table.left_s() < 5:
                table.add("", "The time limit is reached.")
                return agree
            inputs = case.inputs
            call = functools.partial(case.native, *inputs)
            times = measure([call], device, case.captures)
            backward = "-"
            if case.leaves:
                leaves = [x.clone().requires_grad_(i in case.leaves) for i, x in enumerate(inputs)]

                def step(case=case, leaves=leaves) -> None:  # type: ignore[no-untyped-def]
                    for leaf in leaves:
                        leaf.grad = None
                    case.native(*leaves).sum().backward()

                backward = f"{measure([step], device, captures=False).eager:.3f}"
            table.row(case.name, f"{times.eager:.3f}", _ms(times.captured), backward)
    return agree


def time_decoder(table: Table, sizes: Sequence[str], device: str) -> None:
    """Time decoder and discretization."""
    from scripts.gpu_checks.decoder import time_frames
    from scripts.gpu_checks.operations import SIZES

    for name in sizes:
        if table.left_s() < 10:
            table.add("", "The time limit is reached.")
            return
        table.head(f"part, sizes of {name}", "ms", "captured, ms", "difference from float32")
        for frame in time_frames(SIZES[name], device):
            table.row(frame.part, f"{frame.eager:.3f}", _ms(frame.captured), f"{frame.error:.1e}")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code."""
    parser = CommandParser(__doc__)
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--sizes", default="t,l", help="comma-separated: small, t, l")
    parser.add_argument("--minutes", type=number_from(1), default=8)
    parser.add_argument("--out", type=Path, default=TABLE, help="file to write the table to")
    parser.add_argument("--no-build", action="store_true", help="use the existing extension")
    parser.add_argument("--no-tests", action="store_true", help="skip the operations' tests")

    def check(args: argparse.Namespace) -> int:
        import torch

        if args.device == "cuda" and not torch.cuda.is_available():
            print("no GPU: nothing was checked (--device cpu --sizes small tests the command)")
            return 0
        return _check(args)

    return run_command(parser, check, arguments)


def _check(args: argparse.Namespace) -> int:
    import torch

    from scripts.gpu_checks.without_mmengine import provide_mmengine

    sizes = [name for name in args.sizes.split(",") if name]
    unknown = set(sizes) - {"small", "t", "l"}
    if unknown:
        raise ConfigError(f"--sizes names {sorted(unknown)[0]!r}: use small, t or l")
    table = Table(args.out, args.minutes)
    where = torch.cuda.get_device_name() if args.device == "cuda" else "a CPU"
    today = f"{datetime.now(timezone.utc):%Y-%m-%d}"
    table.add(
        f"# First check on {where}", "", f"torch {torch.__version__}, {today}. Medians of five "
        "rounds, without waiting between calls; captured: replay of a CUDA graph.", "",
    )  # fmt: skip
    if not args.no_build:
        build(table)
    agree = compare_operations(table, sizes, args.device)
    if provide_mmengine():
        table.add("", "MMEngine is not installed: the decoder runs without it.")
    time_decoder(table, sizes, args.device)
    if not args.no_tests and args.device == "cuda" and table.left_s() > 30:
        run_tests(table)
    return 0 if agree else 1


def _ms(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"
