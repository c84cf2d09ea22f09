"""Train and score overrides of a config over seeds, in sequence, and compare them.

    python scripts/ablate.py configs/ablations/recipes.yaml [--out FOLDER]

The YAML file names a config, rows of overrides and seeds; docs/recipes.md describes its keys. Each
training and each evaluation runs in its own process. After an interruption the same command
continues: completed steps are kept, and an interrupted training is resumed. The table `ablation.md`
and the numbers `ablation.json` are written again after each row and seed, the plot `ablation.png`
at the end. Rows that fail are listed at the end (exit code 2); the others continue.
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from scripts.runtime.atomic_write import check_folder_target, write_atomically, write_json
from scripts.runtime.checkpoint import read_checkpoint
from scripts.runtime.command_line import CommandParser, run_command
from scripts.runtime.environment import git_commit
from scripts.runtime.errors import ConfigError
from scripts.toy_runs.ablation_spec import (
    Spec,
    config_text,
    merged,
    read_spec,
    slug,
    training_overrides,
)
from scripts.toy_runs.model_steps import DATA_SETS, make_data, score_model, train_model
from scripts.toy_runs.steps import StepFailed, Steps

INTERRUPTED = 130
EQUAL_TIME = "equal time"
# Steps whose times differ by less are equally fast: the time of a step varies as much between runs.
EQUAL_WITHIN = 0.05


@dataclass
class Result:
    """Results of one row.

    Attributes:
        row: Name, including the names of the evaluation and the budget, if there are any.
        base: Name of the row that it is compared with.
        scores: Maps names of scores to values by seed.
        step_seconds: Time of a training iteration, by seed.
        memory_mb: Peak memory of the training process, by seed.
        sample_seconds: Time of an evaluation per sample, loading and scoring included, by seed.
        iterations: Length of the training, by seed.
    """

    row: str
    base: str
    scores: dict[str, dict[int, float]] = field(default_factory=dict)
    step_seconds: dict[int, float] = field(default_factory=dict)
    memory_mb: dict[int, float] = field(default_factory=dict)
    sample_seconds: dict[int, float] = field(default_factory=dict)
    iterations: dict[int, int] = field(default_factory=dict)


@dataclass(frozen=True)
class Cost:
    """Values from the log and the last checkpoint of a training.

    Attributes:
        step_seconds: Median time of an iteration.
        memory_mb: Peak memory of the process.
        iterations: Length of the training.
    """

    step_seconds: float
    memory_mb: float
    iterations: int


class Ablation:
    """Runner of the trainings and evaluations of a `Spec`.

    Args:
        spec: The ablation.
        out: Folder for all results.
    """

    def __init__(self, spec: Spec, out: Path) -> None:
        self.spec = spec
        self.out = out
        self.results: dict[str, Result] = {}
        self.failures: list[str] = []

    def run(self) -> None:
        """Run all rows and seeds.

        Raises:
            ConfigError: The config cannot be read.
            StepFailed: A row failed; all others are complete.
            KeyboardInterrupt: A step was interrupted.
        """
        spec = self.spec
        data_key = "" if spec.data is None else make_data(DATA_SETS[spec.data])
        # Seed by seed: an interrupted ablation has compared all rows, on fewer seeds.
        for seed in spec.seeds:
            costs = {row: self._attempt(row, seed, data_key) for row in spec.rows}
            base = costs[spec.base]
            if not spec.equal_time or base is None:
                continue
            for row, cost in costs.items():
                if row != spec.base and cost is not None and not _is_as_fast(cost, base):
                    self._attempt(row, seed, data_key, self._equal_length(base, cost))
        if self.failures:
            raise StepFailed("; ".join(self.failures))

    def _equal_length(self, base: Cost, other: Cost) -> int:
        assert self.spec.iterations is not None
        return max(1, round(self.spec.iterations * base.step_seconds / other.step_seconds))

    def _attempt(
        self, row: str, seed: int, data_key: str, iterations: int | None = None
    ) -> Cost | None:
        """Run `_row`; record a failure and return None."""
        cost = None
        try:
            cost = self._row(row, seed, data_key, iterations)
        except StepFailed as error:
            if f"exit code {INTERRUPTED}" in str(error):
                raise KeyboardInterrupt from None
            name = row if iterations is None else f"{row}, {EQUAL_TIME}"
            self.failures.append(f"{name}, seed {seed}: {error}")
            print(f"== {self.failures[-1]}", flush=True)
        write_results(self.spec, list(self.results.values()), self.out)
        return cost

    def _row(self, row: str, seed: int, data_key: str, iterations: int | None = None) -> Cost:
        """Train and score one row with one seed; `iterations` is set for equal time."""
        spec = self.spec
        parts = [slug(row), *([] if iterations is None else [slug(EQUAL_TIME)]), f"seed{seed}"]
        work_dir = self.out.joinpath(*parts)
        print(f"\n== {' / '.join(parts)}", flush=True)
        # Next to the work dir: MMEngine writes the resolved config into it, under the same name.
        config = work_dir.with_name(f"{work_dir.name}.py")
        overrides = training_overrides(spec, row, seed, iterations)
        _write_once(config, config_text(spec.config, overrides))
        steps = Steps.load(work_dir / "steps.json")
        weights = train_model(steps, str(config), work_dir, data_key)
        cost = read_cost(work_dir, weights)
        for name, changes in spec.evaluations.items():
            evaluated = config.with_name(f"{work_dir.name}-{slug(name)}.py") if name else config
            if name:
                _write_once(evaluated, config_text(spec.config, merged(overrides, changes)))
            folder = work_dir / slug(name) if name else work_dir
            folder.mkdir(parents=True, exist_ok=True)
            own = Steps.load(folder / "scores.steps.json")
            report = score_model(own, str(evaluated), weights, folder)
            self._note(row, seed, name, iterations is not None, cost, report)
        return cost

    def _note(
        self,
        row: str,
        seed: int,
        evaluation: str,
        equal_time: bool,
        cost: Cost,
        report: Path,
    ) -> None:
        content = json.loads(report.read_text())
        extra = [evaluation] if evaluation else []
        name = ", ".join([row, *([EQUAL_TIME] if equal_time else []), *extra])
        base = ", ".join([self.spec.base, *extra])
        result = self.results.setdefault(name, Result(name, base))
        for score in self.spec.scores:
            value = content["metrics"].get(score)
            if value is None:
                known = ", ".join(key for key in content["metrics"] if "/IoU_" not in key)
                raise ConfigError(f"{report} has no score '{score}', but {known}: correct `scores`")
            result.scores.setdefault(score, {})[seed] = float(value)
        result.step_seconds[seed] = cost.step_seconds
        result.memory_mb[seed] = cost.memory_mb
        result.iterations[seed] = cost.iterations
        if content.get("seconds") and content.get("num_samples"):
            result.sample_seconds[seed] = content["seconds"] / content["num_samples"]


def _is_as_fast(cost: Cost, base: Cost) -> bool:
    return abs(cost.step_seconds / base.step_seconds - 1) < EQUAL_WITHIN


def _write_once(path: Path, text: str) -> None:
    """Write a file unless it already holds the text."""
    if not path.is_file() or path.read_text() != text:
        write_atomically(path, lambda temporary: temporary.write_text(text))


def read_cost(work_dir: Path, weights: Path) -> Cost:
    """Read time and memory of a training from its log, and its length from its last checkpoint.

    Raises:
        CheckpointError: The checkpoint cannot be read.
        StepFailed: The work dir has no log of an iteration.
    """
    times, memory = [], 0.0
    for file in sorted(work_dir.glob("*/vis_data/scalars.json")):
        for line in file.read_text().splitlines():
            try:
                entry = json.loads(line)
            except json.JSONDecodeError:  # the last line of a process that was killed
                continue
            if "loss" in entry and "time" in entry:
                times.append(float(entry["time"]))
                memory = max(memory, float(entry.get("host_memory", 0.0)))
    if not times:
        raise StepFailed(
            f"{work_dir} has no log of an iteration: remove it, and set "
            "default_hooks.logger.interval to less than the number of iterations"
        )
    iterations = int(read_checkpoint(weights)["meta"]["iter"])
    return Cost(statistics.median(times), memory, iterations)


def mean_and_spread(values: Sequence[float]) -> tuple[float, float | None]:
    """Return the mean and the standard deviation of a sample, None for a single value."""
    return statistics.fmean(values), statistics.stdev(values) if len(values) > 1 else None


def difference(result: Result, base: Result, score: str) -> tuple[float, float | None] | None:
    """Return mean and spread of the gain over the base, paired by seed; None without a pair."""
    own, other = result.scores.get(score, {}), base.scores.get(score, {})
    gains = [own[seed] - other[seed] for seed in own if seed in other]
    return mean_and_spread(gains) if gains else None


def table(spec: Spec, results: Sequence[Result]) -> str:
    """Return the Markdown table of an ablation."""
    names = [score.rpartition("/")[2] for score in spec.scores]
    header = ["row", "seeds", "iterations"]
    for name in names:
        header += [name, f"{name} against base"]
    header += ["s per step", "MB", "evaluation, s per sample"]
    by_name = {result.row: result for result in results}
    lines = [header, ["---"] * len(header)]
    for result in results:
        cells = [result.row, str(len(result.step_seconds)), _span(result.iterations.values())]
        for score in spec.scores:
            values = list(result.scores.get(score, {}).values())
            cells.append(_plus_minus(mean_and_spread(values)) if values else "")
            base = by_name.get(result.base)
            gain = None
            if base is not None and base is not result:
                gain = difference(result, base, score)
            cells.append("" if gain is None else _plus_minus(gain, sign="+"))
        for costs, digits in ((result.step_seconds, 3), (result.memory_mb, 0)):
            cells.append(f"{statistics.fmean(costs.values()):.{digits}f}" if costs else "")
        seconds = result.sample_seconds.values()
        cells.append(f"{statistics.fmean(seconds):.3f}" if seconds else "")
        lines.append(cells)
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def _plus_minus(value: tuple[float, float | None], sign: str = "") -> str:
    mean, spread = value
    return f"{mean:{sign}.2f}" + ("" if spread is None else f" ± {spread:.2f}")


def _span(values: Iterable[int]) -> str:
    lengths = sorted(values)
    low, high = lengths[0], lengths[-1]
    return str(low) if low == high else f"{low} to {high}"


def write_results(spec: Spec, results: Sequence[Result], out: Path) -> None:
    """Write the table and the numbers of the results so far."""
    if not results:
        return
    text = (
        f"# {spec.name}\n\nConfig {spec.config.name}, seeds {', '.join(map(str, spec.seeds))}, "
        f"commit {git_commit()}. Mean ± standard deviation over seeds; differences are taken seed "
        f"by seed.\n\n{table(spec, results)}\n"
    )
    write_atomically(out / "ablation.md", lambda path: path.write_text(text))
    write_json(out / "ablation.json", {r.row: _plain(r) for r in results}, 2)


def _plain(result: Result) -> dict[str, Any]:
    return {key: value for key, value in vars(result).items() if key != "row"}


def draw(spec: Spec, results: Sequence[Result], out: Path) -> None:
    """Draw every score of every row: seeds as dots, their mean as a line."""
    from matplotlib.figure import Figure

    count = len(spec.scores)
    height = 1.2 + 0.42 * len(results)
    figure = Figure(figsize=(3.2 + 3.6 * count, height), layout="constrained")
    axes = figure.subplots(1, count, squeeze=False, sharey=True)[0]
    for ax, score in zip(axes, spec.scores, strict=True):
        for y, result in enumerate(results):
            values = list(result.scores.get(score, {}).values())
            colour = "#0072b2" if result.row == result.base else "#d55e00"
            ax.plot(values, [y] * len(values), "o", color=colour, alpha=0.6, markersize=5)
            if values:
                mean = statistics.fmean(values)
                ax.plot([mean, mean], [y - 0.32, y + 0.32], color=colour, linewidth=2.2)
                if result.row == result.base:
                    ax.axvline(mean, color=colour, linewidth=0.8, linestyle=":")
        ax.set_title(score.rpartition("/")[2], loc="left", fontsize=11, fontweight="bold")
        ax.grid(axis="x", color="#dddddd", linewidth=0.6)
        ax.spines[["top", "right"]].set_visible(False)
        ax.tick_params(labelsize=8)
    axes[0].set_yticks(range(len(results)), [result.row for result in results])
    axes[0].set_ylim(len(results) - 0.5, -0.5)
    write_atomically(out, lambda path: figure.savefig(path, dpi=130, format="png"))


def run_ablation(spec: Spec, out: Path) -> None:
    """Run an ablation and print its table.

    Raises:
        ConfigError: `data` names no data set, or a config cannot be read.
        StepFailed: A row failed.
    """
    if spec.data is not None and spec.data not in DATA_SETS:
        raise ConfigError(f"data is '{spec.data}': choose one of {', '.join(DATA_SETS)}")
    check_folder_target("--out", out)
    ablation = Ablation(spec, out)
    try:
        ablation.run()
    finally:
        if ablation.results:
            draw(spec, list(ablation.results.values()), out / "ablation.png")
            print(f"\n{table(spec, list(ablation.results.values()))}\n\n{out}/ablation.png")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code."""
    parser = CommandParser(__doc__)
    parser.add_argument("spec", type=Path, metavar="SPEC", help="YAML file, see configs/ablations/")
    parser.add_argument(
        "--out", type=Path, metavar="FOLDER", help="default: work_dirs/ablations/NAME OF THE FILE"
    )

    def run(args: argparse.Namespace) -> None:
        spec = read_spec(args.spec)
        run_ablation(spec, args.out or Path("work_dirs", "ablations", spec.name))

    return run_command(
        parser,
        run,
        arguments,
        interrupted="interrupted; the same command continues where it stopped",
    )
