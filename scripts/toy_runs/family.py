"""Train every model of the family on the toy data and print tables of scores.

    python scripts/family.py          # `make family`: one to two hours on two cores
    python scripts/family.py --models opusv2-nano_toy opusv2-fusion-nano_toy

The first table compares the Occ3D models with the image-blind prior, the second the OpenOccupancy
models: on the voxels of the training and, with the same weights, on finer and coarser ones.
Completed steps are kept, and an interrupted training is resumed. The command fails (exit code 2) if
a model does not beat the prior, or if a fusion model does not beat its camera-only form.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from scripts.runtime.command_line import CommandParser, run_command
from scripts.toy_runs.model_steps import make_data, score_model, score_prior, train_model
from scripts.toy_runs.steps import ROOT, StepFailed, Steps

# Models of the first table; a fusion model comes after its camera-only form.
OCC3D = (
    "opusv1-nano_toy",
    "opusv1-fusion-nano_toy",
    "opusv2-nano_toy",
    "opusv2-nano_dcdloss_toy",
    "opusv2-fusion-nano_toy",
)
CAMERA_FORM = {
    "opusv1-fusion-nano_toy": "opusv1-nano_toy",
    "opusv2-fusion-nano_toy": "opusv2-nano_toy",
}
# Models of the second table, with voxel sizes (m) to score on; the first is that of the training.
OCCUPANCY = {
    "opusv2-nano_toy-occupancy": (0.2,),
    "opusv2-nano_toy-occupancy-0.4m": (0.4, 0.2, 0.8),
}
METRICS = ("mIoU", "RayIoU")


@dataclass(frozen=True)
class Score:
    """One line of a table.

    Attributes:
        model: Name of the config.
        voxel_size: Edge in m of the voxels of the scores; None for that of the config.
        parameters: Number of parameters, auxiliary heads included.
        minutes: Wall time of the training.
        memory_mb: Peak memory of the training process.
        ours: mIoU and RayIoU of the model, in percent.
        prior: The same of the image-blind prior.
    """

    model: str
    voxel_size: float | None
    parameters: int
    minutes: float
    memory_mb: float
    ours: tuple[float, float]
    prior: tuple[float, float]

    def row(self) -> str:
        """Return the line as Markdown."""
        size = "" if self.voxel_size is None else f" {self.voxel_size} m |"
        cells = [f"{self.parameters / 1e6:.2f} M", f"{self.minutes:.1f}", f"{self.memory_mb:.0f}"]
        for ours, prior in zip(self.ours, self.prior, strict=True):
            cells += [f"**{ours:.2f}**", f"{prior:.2f}"]
        return f"| {self.model} |{size} {' | '.join(cells)} |"


def run_family(names: Sequence[str]) -> None:
    """Train and score models and print the tables.

    Args:
        names: Names of configs.

    Raises:
        ConfigError: A config cannot be read.
        StepFailed: A step failed, or a model did not reach its required scores.
    """
    data_key = make_data()
    scores = [score for name in names for score in _train_and_score(name, data_key)]
    print_tables(scores)
    complaints = check(scores)
    if complaints:
        raise StepFailed("; ".join(complaints))


def _train_and_score(name: str, data_key: str) -> list[Score]:
    config = str(ROOT / f"configs/toy/{name}.py")
    work_dir = Path("work_dirs", name)
    steps = Steps.load(work_dir / "demo_steps.json")
    weights = train_model(steps, config, work_dir, data_key)
    training = steps.records["training"]
    own, *others = OCCUPANCY.get(name, (None,))
    scores = []
    for size in (own, *others):
        options = [] if size == own else [f"voxel_size=[{size},{size},{size}]"]
        files = (
            score_model(steps, config, weights, work_dir, options),
            score_prior(steps, config, data_key, work_dir, options),
        )
        ours, prior = (read_scores(file) for file in files)
        scores.append(
            Score(
                name,
                size,
                _count_parameters(config),
                training.seconds / 60,
                training.peak_memory_mb,
                ours,
                prior,
            )
        )
    return scores


def read_scores(path: Path) -> tuple[float, float]:
    """Return mIoU and RayIoU of a file of `val.py`, whatever the prefix of the metric."""
    metrics = json.loads(path.read_text())["metrics"]
    found = {key.rpartition("/")[2]: float(value) for key, value in metrics.items()}
    missing = [name for name in METRICS if name not in found]
    if missing:
        raise StepFailed(f"{path} has no {' and no '.join(missing)}: remove it and run again")
    return found[METRICS[0]], found[METRICS[1]]


def _count_parameters(config: str) -> int:
    """Return the parameters of a config's model."""
    from mmengine.registry import MODELS, init_default_scope

    from scripts.runtime.config import load_config

    cfg = load_config(config)
    init_default_scope(cfg.default_scope)
    return sum(parameter.numel() for parameter in MODELS.build(cfg.model).parameters())


def print_tables(scores: Sequence[Score]) -> None:
    """Print one table of the Occ3D models and one of the OpenOccupancy models."""
    columns = "parameters | minutes | MB | mIoU | its prior | RayIoU | its prior |"
    for occupancy, extra in ((False, ""), (True, " voxels |")):
        rows = [score.row() for score in scores if (score.voxel_size is not None) == occupancy]
        if rows:
            header = f"| model |{extra} {columns}"
            print(f"\n{header}\n|{'---|' * (header.count('|') - 1)}")
            print("\n".join(rows), flush=True)


def check(scores: Sequence[Score]) -> list[str]:
    """Return one message for each score that misses its requirement."""
    complaints = []
    # Only on the voxels of the training; finer and coarser ones have no requirement.
    own = {score.model: score for score in reversed(scores)}
    for score in reversed(own.values()):
        for metric, ours, prior in zip(METRICS, score.ours, score.prior, strict=True):
            if not ours > prior:
                complaints.append(f"{score.model}: {metric} {ours:.2f}, the prior's is {prior:.2f}")
        camera = own.get(CAMERA_FORM.get(score.model, ""))
        if camera is None:
            continue
        for metric, ours, theirs in zip(METRICS, score.ours, camera.ours, strict=True):
            if not ours > theirs:
                complaints.append(
                    f"{score.model}: {metric} {ours:.2f}, without LiDAR it is {theirs:.2f}"
                )
    return complaints


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code."""
    parser = CommandParser(__doc__)
    known = (*OCC3D, *OCCUPANCY)
    parser.add_argument("--models", nargs="+", choices=known, default=known, metavar="NAME")
    return run_command(parser, lambda args: run_family(args.models), arguments)
