"""Random disturbances of a training, its resumption, and counts of lost work."""

from __future__ import annotations

import random
import shutil
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from scripts.drills.jobs import Training, record_of, warm_up
from scripts.drills.parts import FULL, GRACE, SLOW, write_config
from scripts.runtime.checkpoint import CheckpointError, read_checkpoint
from scripts.runtime.checkpoint_files import find_newest_checkpoint
from scripts.runtime.errors import ConfigError

PATIENCE_S = 60.0  # time limit for a process to exit after a disturbance
_FROZEN_S = 1.0  # between freezing a process and the next action
_GENTLE = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2)
# Parts of a checkpoint that must be equal to those of an undisturbed run.
_COMPARED = ("state_dict", "optimizer", "param_schedulers", "random_states", "place")
Steps = dict[int, str]  # record of each iteration of a process


@dataclass
class Outcome:
    """Losses due to one kind of disturbance.

    Attributes:
        number: Number of disturbances of this kind.
        lost_steps: Number of repeated steps.
        hung: Number of processes that did not exit.
        lost_runs: Number of trainings that could not be resumed or did not finish.
    """

    number: int = 0
    lost_steps: int = 0
    hung: int = 0
    lost_runs: int = 0


@dataclass
class Result:
    """Result of a drill.

    Attributes:
        outcomes: Outcomes by kind of disturbance.
        runs: Number of completed trainings.
        differing_steps: Number of iterations with samples or a learning rate that differ from the
            undisturbed training.
        differing_weights: Number of completed trainings whose final state differs from the
            undisturbed one.
        failures: Descriptions of the failures.
    """

    outcomes: dict[str, Outcome] = field(default_factory=dict)
    runs: int = 0
    differing_steps: int = 0
    differing_weights: int = 0
    failures: list[str] = field(default_factory=list)

    @property
    def number(self) -> int:
        """Number of disturbances."""
        return sum(outcome.number for outcome in self.outcomes.values())

    @property
    def is_good(self) -> bool:
        """Whether nothing was lost except steps since a checkpoint."""
        outcomes = self.outcomes.values()
        lost = sum(outcome.lost_runs + outcome.hung for outcome in outcomes)
        return not (lost or self.differing_steps or self.differing_weights)

    def table(self) -> str:
        """Return the result as a Markdown table."""
        lines = [
            "| disturbance | number | lost runs | processes that hung | repeated steps |",
            "|---|---|---|---|---|",
        ]
        for name, one in sorted(self.outcomes.items()):
            lines.append(
                f"| {name} | {one.number} | {one.lost_runs} | {one.hung} | {one.lost_steps} |"
            )
        lines += [
            "",
            f"{self.number} disturbances in {self.runs} completed trainings: "
            f"{self.differing_steps} iterations with other samples or another learning rate, "
            f"{self.differing_weights} trainings whose final weights differ.",
        ]
        return "\n".join(lines)


def run_drill(
    folder: Path, *, kills: int, processes: int, model: str, epochs: int = 3, seed: int = 0
) -> Result:
    """Disturb trainings until the given number of disturbances is reached.

    Args:
        folder: Folder for configs and work dirs.
        kills: Number of disturbances.
        processes: Processes per training.
        model: See `scripts.drills.parts.HEADS`.
        epochs: Length of a training; an epoch has six steps.
        seed: Seed of the drill's random numbers.

    Raises:
        ConfigError: The undisturbed training fails.
    """
    return _Drill(folder, processes, model, epochs, random.Random(seed)).run(kills)


class _Drill:
    def __init__(
        self, folder: Path, processes: int, model: str, epochs: int, rng: random.Random
    ) -> None:
        self.folder, self.processes, self.rng = folder, processes, rng
        self.config = write_config(folder, model, epochs)
        self.result = Result()
        self.kinds: list[tuple[str, Callable[[Path], tuple[Training, bool]]]] = [
            ("SIGKILL to one process", self._kill_one),
            ("SIGKILL to all processes", self._kill_all),
            ("signal to the processes", self._signal_processes),
            ("signal to the process groups", self._signal_groups),
            ("SIGKILL, newest checkpoint damaged", self._damage),
            ("full disk, then a signal", self._fill_disk),
            ("a sample that never comes, then a signal", self._slow_loader),
            ("frozen process, signal, thawed", self._freeze),
            ("frozen process, SIGKILL", self._freeze_and_kill),
        ]

    def run(self, kills: int) -> Result:
        whole = self.folder / "whole"
        warm_up()
        start = time.monotonic()
        training = self._start(whole)
        codes = training.wait(600)
        if codes != [0] * self.processes:
            training.end()
            raise ConfigError(
                f"the undisturbed training of the drill ended with {codes}: see "
                f"{training.output(0)}"
            )
        self.duration = time.monotonic() - start
        self.expected = [self._steps(whole, rank) for rank in range(self.processes)]
        self.end = _end_of(whole)
        while self.result.number < kills:
            self._one_run(kills)
        return self.result

    def _one_run(self, kills: int) -> None:
        """Disturb one training until it ends."""
        work_dir = self.folder / "run"
        last = ""
        while True:
            undisturbed = self.result.number >= kills
            before = self._lines(work_dir)
            if undisturbed:
                training, was_disturbed = self._start(work_dir), False
            else:
                name, disturb = self.rng.choice(self.kinds)
                training, was_disturbed = disturb(work_dir)
            if was_disturbed:
                self.result.outcomes.setdefault(name, Outcome()).number += 1
            codes = training.wait(PATIENCE_S if was_disturbed else 600)
            hung = None in codes
            training.end()
            self._count_repeated(work_dir, before, last)
            if hung and was_disturbed:
                self.result.outcomes[name].hung += 1
                self.result.failures.append(f"{name}: exit codes {codes}, {_tail(training)}")
            if not was_disturbed:
                if codes != [0] * self.processes:
                    outcome = self.result.outcomes.setdefault(last or "none", Outcome())
                    outcome.lost_runs += 1
                    text = f"after {last}: exit codes {codes}, {_tail(training)}"
                    self.result.failures.append(text)
                else:
                    self._compare(work_dir)
                break
            if not last or len(self._lines(work_dir)) > len(before):
                last = name  # otherwise the repeated steps belong to the previous disturbance
        self._forget(work_dir)

    def _start(self, work_dir: Path, **environment: str) -> Training:
        return Training(self.config, work_dir, self.processes, environment)

    def _strike(self, training: Training, strike: Callable[[], None]) -> bool:
        """Disturb at a random time; return whether the training was still running."""
        end = time.monotonic() + self.rng.uniform(0.1, 0.9) * self.duration
        while time.monotonic() < end and training.is_running:
            time.sleep(0.01)
        if not training.is_running:
            return False
        strike()
        # A run that had already finished was not disturbed.
        return training.wait(PATIENCE_S) != [0] * self.processes

    # Kinds of disturbances: each starts a training and returns whether it was disturbed.

    def _kill_one(self, work_dir: Path) -> tuple[Training, bool]:
        training = self._start(work_dir)
        rank = self.rng.randrange(self.processes)
        return training, self._strike(training, lambda: training.send(signal.SIGKILL, rank))

    def _kill_all(self, work_dir: Path) -> tuple[Training, bool]:
        training = self._start(work_dir)
        return training, self._strike(training, lambda: training.send(signal.SIGKILL, group=True))

    def _signal_processes(self, work_dir: Path) -> tuple[Training, bool]:
        training, number = self._start(work_dir), self.rng.choice(_GENTLE)
        return training, self._strike(training, lambda: training.send(number))

    def _signal_groups(self, work_dir: Path) -> tuple[Training, bool]:
        training, number = self._start(work_dir), self.rng.choice(_GENTLE)
        return training, self._strike(training, lambda: training.send(number, group=True))

    def _damage(self, work_dir: Path) -> tuple[Training, bool]:
        training, was_disturbed = self._kill_all(work_dir)
        newest = max(work_dir.glob("*.pth"), key=lambda path: path.stat().st_mtime, default=None)
        # A file that an earlier disturbance emptied cannot be damaged further.
        if was_disturbed and newest is not None and (content := bytearray(newest.read_bytes())):
            kind = self.rng.choice(["flip", "cut", "empty"])
            if kind == "flip":
                content[self.rng.randrange(len(content))] ^= 1 << self.rng.randrange(8)
            size = {"flip": len(content), "cut": self.rng.randrange(len(content)), "empty": 0}
            newest.write_bytes(bytes(content[: size[kind]]))
        return training, was_disturbed

    def _fill_disk(self, work_dir: Path) -> tuple[Training, bool]:
        training = self._start(work_dir, **{FULL: "1000000"})
        self._strike(training, lambda: training.send(signal.SIGTERM))
        # It may have ended before the signal, because the last checkpoint cannot be written.
        return training, training.wait(PATIENCE_S) != [0] * self.processes

    def _slow_loader(self, work_dir: Path) -> tuple[Training, bool]:
        slow = {SLOW: str(self.rng.randrange(11)), GRACE: "2"}
        training = self._start(work_dir, **slow)
        return training, self._strike(training, lambda: training.send(signal.SIGTERM, group=True))

    def _freeze(self, work_dir: Path) -> tuple[Training, bool]:
        training = self._start(work_dir)
        rank = self.rng.randrange(self.processes)

        def strike() -> None:
            training.send(signal.SIGSTOP, rank)
            time.sleep(_FROZEN_S)
            training.send(signal.SIGTERM)
            time.sleep(_FROZEN_S)
            training.send(signal.SIGCONT, rank)

        return training, self._strike(training, strike)

    def _freeze_and_kill(self, work_dir: Path) -> tuple[Training, bool]:
        training = self._start(work_dir)
        rank = self.rng.randrange(self.processes)

        def strike() -> None:
            training.send(signal.SIGSTOP, rank)
            time.sleep(_FROZEN_S)
            training.send(signal.SIGKILL, group=True)

        return training, self._strike(training, strike)

    # Counts.

    def _lines(self, work_dir: Path) -> list[str]:
        path = record_of(work_dir, 0)
        return path.read_text().splitlines() if path.exists() else []

    def _steps(self, work_dir: Path, rank: int) -> Steps:
        """Return a process's last record of every iteration."""
        steps: Steps = {}
        path = record_of(work_dir, rank)
        for line in path.read_text().splitlines() if path.exists() else []:
            epoch, iteration, rest = line.split(" ", 2)
            steps[int(iteration)] = f"{epoch} {rest}"
        return steps

    def _count_repeated(self, work_dir: Path, before: list[str], last: str) -> None:
        """Count the steps of the last start that were done before."""
        if not last:
            return
        done = {line.split(" ")[1] for line in before}
        now = {line.split(" ")[1] for line in self._lines(work_dir)[len(before) :]}
        self.result.outcomes[last].lost_steps += len(done & now)

    def _compare(self, work_dir: Path) -> None:
        self.result.runs += 1
        for rank, expected in enumerate(self.expected):
            steps = self._steps(work_dir, rank)
            iterations = expected.keys() | steps.keys()
            self.result.differing_steps += sum(
                expected.get(number) != steps.get(number) for number in iterations
            )
        end = _end_of(work_dir)
        if end is None or not _same(end, self.end):
            self.result.differing_weights += 1

    def _forget(self, work_dir: Path) -> None:
        shutil.rmtree(work_dir, ignore_errors=True)
        for rank in range(self.processes):
            record_of(work_dir, rank).unlink(missing_ok=True)


def _end_of(work_dir: Path) -> dict[str, Any] | None:
    """Return the compared parts of the newest checkpoint of a work dir."""
    newest = find_newest_checkpoint(work_dir).path
    try:
        content = read_checkpoint(newest) if newest is not None else None
    except CheckpointError:
        return None
    return None if content is None else {key: content.get(key) for key in _COMPARED}


def _same(first: Any, second: Any) -> bool:
    """Return whether two states are bitwise equal."""
    if isinstance(first, torch.Tensor):
        return isinstance(second, torch.Tensor) and torch.equal(first, second)
    if isinstance(first, dict):
        return (
            isinstance(second, dict)
            and first.keys() == second.keys()
            and all(_same(value, second[key]) for key, value in first.items())
        )
    if isinstance(first, (list, tuple)):
        return len(first) == len(second) and all(map(_same, first, second))
    return bool(first == second)


def _tail(training: Training) -> str:
    """Return the last line printed by each process."""
    tails = []
    for rank in range(training.number):
        path = training.output(rank)
        lines = path.read_text(errors="replace").strip().splitlines() if path.exists() else []
        tails.append(lines[-1][:300] if lines else "no output")
    return " | ".join(tails)


__all__ = ["Outcome", "Result", "run_drill"]
