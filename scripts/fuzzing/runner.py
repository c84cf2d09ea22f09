"""Corrupt files, call native operations with invalid arguments, and report what is not rejected.

    python scripts/fuzz.py [--seconds N] [--seed S] [--target ops|files]

Cases run in a separate process. A finding is a case that ends this process, takes too long, uses
too much memory, or raises an error that its target does not allow. It is printed with the seed that
reproduces it, and the exit code is 1. Without `--target`, both targets alternate.
"""

from __future__ import annotations

import argparse
import importlib
import importlib.util
import multiprocessing
import os
import time
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from multiprocessing.connection import Connection
from pathlib import Path
from types import ModuleType
from typing import Any

from scripts.runtime.command_line import CommandParser, number_from, run_command

TARGETS = ("ops", "files")
#: Cases per seed. A new seed begins after them, or after a finding that ended the process.
CASES_PER_SEED = 400
_POLL_S = 0.02


@dataclass(frozen=True)
class Case:
    """Identification of a case.

    Attributes:
        target: Module of `scripts.fuzzing`, or a module's full name.
        seed: Argument of its `cases`.
        number: Position among the cases of the seed.
        name: Description of the case.
    """

    target: str
    seed: int
    number: int
    name: str


@dataclass(frozen=True)
class Finding:
    """A failed case and its problem."""

    case: Case
    problem: str

    def __str__(self) -> str:
        case = self.case
        return (
            f"{self.problem}: {case.name} (case {case.number} of "
            f"`python scripts/fuzz.py --target {case.target} --seed {case.seed}`)"
        )


def load_target(name: str) -> ModuleType:
    """Return the module with the cases: of `scripts.fuzzing`, or any module by its full name."""
    return importlib.import_module(name if "." in name else f"scripts.fuzzing.{name}")


def available_targets() -> list[str]:
    """Return the targets whose modules exist."""
    return [name for name in TARGETS if importlib.util.find_spec(f"scripts.fuzzing.{name}")]


def fuzz(
    targets: Sequence[str], seed: int, seconds: float, cases_per_seed: int = CASES_PER_SEED
) -> Iterator[Finding | int]:
    """Run cases until the time limit.

    Args:
        targets: Modules, which alternate.
        seed: First seed; it is incremented for the following runs.
        seconds: Time limit; at least one seed of each target is run.
        cases_per_seed: Cases per seed.

    Yields:
        Findings as they occur, and finally the number of cases run.
    """
    end, total = time.monotonic() + seconds, 0
    workers: dict[str, _Worker] = {}
    turn = 0
    try:
        while turn < len(targets) or time.monotonic() < end:
            target = targets[turn % len(targets)]
            worker = workers.get(target) or _Worker(target)
            workers[target] = worker
            own_seed = seed + turn // len(targets)
            last = end if turn >= len(targets) else None
            for outcome in worker.run(own_seed, cases_per_seed, last):
                if isinstance(outcome, Finding):
                    yield outcome
                else:
                    total += outcome
            if not worker.is_alive():
                del workers[target]
            turn += 1
    finally:
        for worker in workers.values():
            worker.stop()
    yield total


class _Worker:
    """A monitored process that runs cases."""

    def __init__(self, target: str) -> None:
        context = multiprocessing.get_context("spawn")
        self._target = target
        self._connection, other = context.Pipe()
        self._process = context.Process(target=_work, args=(other, target), daemon=True)
        self._process.start()
        other.close()
        self._seconds, self._mib = self._connection.recv()

    def is_alive(self) -> bool:
        return self._process.is_alive()

    def stop(self) -> None:
        self._connection.close()
        self._process.kill()
        self._process.join()

    def run(self, seed: int, count: int, end: float | None) -> Iterator[Finding | int]:
        """Yield the findings of one seed, and the number of its cases that were run."""
        self._connection.send((seed, count))
        case, done = Case(self._target, seed, -1, "start"), 0
        began, before = time.monotonic(), _resident_mib(self._process.pid)
        while True:
            try:
                if self._connection.poll(_POLL_S):
                    message = self._connection.recv()
                    if message is None:
                        break
                    if isinstance(message, Case):
                        case, began = message, time.monotonic()
                        before = _resident_mib(self._process.pid)
                        continue
                    done += 1
                    if message:
                        yield Finding(case, message)
                    if end is not None and time.monotonic() > end:
                        self.stop()
                        break
                    continue
            except EOFError:
                self._process.join()
                done += 1
                yield Finding(case, f"the process ended with exit code {self._process.exitcode}")
                break
            problem = None
            if time.monotonic() - began > self._seconds:
                problem = f"more than {self._seconds:g} seconds"
            elif (taken := _resident_mib(self._process.pid) - before) > 2 * self._mib:
                problem = f"{taken:.0f} MiB of memory, stopped"
            if problem:
                done += 1
                yield Finding(case, problem)
                self.stop()
                break
        yield done


def _work(connection: Connection, target: str) -> None:
    """Run the cases of the requested seeds; the process at the other end monitors them."""
    warnings.simplefilter("ignore")  # warnings of cases do not matter
    module = load_target(target)
    limit_mib = getattr(module, "MEMORY_MIB", 200)
    connection.send((getattr(module, "SECONDS", 30.0), limit_mib))
    while True:
        try:
            seed, count = connection.recv()
        except EOFError:
            return
        for number, (name, call) in enumerate(islice(module.cases(seed), count)):
            connection.send(Case(target, seed, number, name))
            before = reset_peak_mib()
            problem = run_case(call, module.ALLOWED)
            taken = peak_mib() - before
            if not problem and taken > limit_mib:
                problem = f"{taken:.0f} MiB of memory"
            connection.send(problem)
        connection.send(None)


def run_case(call: Any, allowed: tuple[type[BaseException], ...]) -> str:
    """Make a call; return a description of its problem, or an empty string."""
    try:
        call()
    except allowed:
        return ""
    except BaseException as error:
        lines = str(error).splitlines() or [""]
        return f"{type(error).__name__}: {lines[0]}"
    return ""


def _resident_mib(pid: int | None) -> float:
    """Return the current memory use of a process; 0 if it is unknown."""
    try:
        pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    except (OSError, IndexError, ValueError):
        return 0.0
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


def reset_peak_mib() -> float:
    """Reset the peak memory of this process; return its current memory use in MiB."""
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return float("inf")  # the peak is unknown: nothing exceeds it
    return peak_mib()


def peak_mib() -> float:
    """Return the peak memory of this process since the last call of `reset_peak_mib`, in MiB."""
    try:
        status = Path("/proc/self/status").read_text()
    except OSError:
        return 0.0
    return next((int(x.split()[1]) / 1024 for x in status.splitlines() if "VmHWM" in x), 0.0)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code: 1 if there were findings."""
    parser = CommandParser((__doc__ or "").split("\n\n")[0])
    parser.add_argument(
        "--seconds", type=number_from(0.0, float), default=60.0, help="time to run (default: 60)"
    )
    parser.add_argument("--seed", type=number_from(0), default=0, help="first seed (default: 0)")
    parser.add_argument("--target", choices=TARGETS, help="what to test (default: both in turn)")

    def run(args: argparse.Namespace) -> int:
        targets = [args.target] if args.target else available_targets()
        findings = total = 0
        for outcome in fuzz(targets, args.seed, args.seconds):
            if isinstance(outcome, Finding):
                findings += 1
                print(outcome, flush=True)
            else:
                total = outcome
        print(f"{total} cases of {', '.join(targets)}, {findings} findings")
        return int(findings > 0)

    return run_command(parser, run, arguments)
