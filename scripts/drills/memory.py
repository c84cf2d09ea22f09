"""Resident memory over a long training and a long streaming evaluation."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from statistics import median

from scripts.drills.jobs import Training, warm_up
from scripts.drills.parts import MEMORY, write_config
from scripts.runtime.errors import ConfigError

_NAMES = {"train": "training steps", "val": "samples of a streaming evaluation"}


@dataclass(frozen=True)
class Drift:
    """Resident memory of the main process in one phase.

    Attributes:
        phase: "train" or "val".
        number: Training steps, or evaluated samples.
        warm: Median over the second fifth of the steps, in bytes; the first fifth is warm-up.
        end: Median over the last fifth, in bytes.
    """

    phase: str
    number: int
    warm: float
    end: float

    @property
    def share(self) -> float:
        """Growth after the warm-up, as a share of the memory."""
        return self.end / self.warm - 1


def measure_drift(folder: Path, *, model: str, steps: int) -> list[Drift]:
    """Train for a number of steps, then evaluate the same number of samples in streaming mode.

    Args:
        folder: Folder for config and work dir.
        model: See `scripts.drills.parts.HEADS`.
        steps: Number of training steps and of evaluated samples; at least 10.

    Raises:
        ConfigError: The training fails.
    """
    config = write_config(folder, model, 1, num_samples=2 * steps, num_evaluated=steps)
    record = folder / "memory.txt"
    warm_up()
    training = Training(config, folder / "memory", 1, {MEMORY: str(record)})
    codes = training.wait(3600)
    training.end()
    if codes != [0]:
        raise ConfigError(f"the training ended with {codes}: see {training.output(0)}")
    readings: dict[str, list[int]] = {phase: [] for phase in _NAMES}
    for line in record.read_text().splitlines():
        phase, size = line.split()
        readings[phase].append(int(size))
    return [_drift(phase, sizes) for phase, sizes in readings.items()]


def _drift(phase: str, sizes: list[int]) -> Drift:
    fifth = len(sizes) // 5
    return Drift(phase, len(sizes), median(sizes[fifth : 2 * fifth]), median(sizes[-fifth:]))


def drift_table(drifts: list[Drift]) -> str:
    """Return the drifts as a Markdown table."""
    lines = ["| | after warm-up, MB | at the end, MB | drift |", "|---|---|---|---|"]
    for one in drifts:
        lines.append(
            f"| {one.number} {_NAMES[one.phase]} | {one.warm / 1e6:.1f} | {one.end / 1e6:.1f} "
            f"| {one.share:+.2%} |"
        )
    return "\n".join(lines)
