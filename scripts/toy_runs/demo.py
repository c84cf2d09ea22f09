"""Toy data, training, scores against an image-blind prior, and pictures in one command.

    python scripts/demo.py            # `make demo`: minutes on two cores
    python scripts/demo.py --long     # `make toy-train`: a longer run

The demo scores and draws the model in pretrain/ (`make toy-pretrain`) on the held-out scenes,
scores a model of the published recipe for comparison, then fine-tunes the first on the training
scenes. The longer run starts from a pretrained image network. Without the files, both train from
scratch. `--from-scratch` adds a training from scratch, and `--skip` omits steps.

Each step runs one of the project's commands in a separate process and writes to data/, work_dirs/
and outputs/ of the current folder. A step with unchanged inputs is skipped; an interrupted training
is resumed. The command prints a table and fails (exit code 2) if the scores of the model are below
the required multiples of the prior's.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from scripts.runtime.command_line import CommandParser, config_file, run_command
from scripts.runtime.config import load_config
from scripts.runtime.errors import ConfigError
from scripts.toy_runs.model_steps import (
    TOY,
    draw_pictures,
    make_data,
    score_model,
    score_prior,
    train_model,
)
from scripts.toy_runs.steps import ROOT, Record, StepFailed, Steps

DEMO_CONFIG = str(ROOT / "configs/toy/opusv2-plus-nano_toy.py")
PUBLISHED_CONFIG = str(ROOT / "configs/toy/opusv2-nano_toy.py")
FINE_TUNING_CONFIG = str(ROOT / "configs/toy/opusv2-plus-nano_toy_finetune.py")
LONG_CONFIG = str(ROOT / "configs/toy/opusv2-plus-nano_toy_long.py")
LONG_PRETRAINED_CONFIG = str(ROOT / "configs/toy/opusv2-plus-nano_toy_long_pretrained.py")
SHIPPED = ROOT / "pretrain/opusv2-plus-nano_toy.pth"
# The published recipe, trained as SHIPPED. `make toy-train` starts from its image network.
PUBLISHED = ROOT / "pretrain/opusv2-nano_toy.pth"
METRICS = {"mIoU": "occ3d/mIoU", "RayIoU": "ray/RayIoU"}
# Required multiples of the prior's scores (mIoU, RayIoU).
DEMO_FACTORS = (1.0, 1.0)
FINE_TUNING_FACTORS = (1.5, 2.0)
LONG_FACTORS = (1.0, 1.5)
LONG_PRETRAINED_FACTORS = (2.0, 4.0)
SKIPPABLE = ("shipped", "published", "fine-tuning", "pictures")


@dataclass(frozen=True)
class Plan:
    """Steps of a demo.

    Attributes:
        config: Config of the training.
        factors: Required multiples of the prior's (mIoU, RayIoU).
        shipped: Weights that are scored and drawn first, or None.
        published: Weights of the published recipe that are scored for comparison, or None.
        start: Initial weights of the training, or None for the initialisation of the config.
        options: `--cfg-options` of the training and the steps after it.
        from_scratch: Config of an additional training from scratch, as long as that of `config`;
            or None.
        pictures: Whether pictures are drawn.
        trains: Whether a model is trained.
    """

    config: str
    factors: tuple[float, float] = DEMO_FACTORS
    shipped: Path | None = None
    published: Path | None = None
    start: Path | None = None
    options: tuple[str, ...] = ()
    from_scratch: str | None = None
    pictures: bool = True
    trains: bool = True


def make_plan(
    *,
    config: str | None = None,
    long: bool = False,
    from_scratch: bool = False,
    skip: Sequence[str] = (),
    shipped: Path = SHIPPED,
    published: Path = PUBLISHED,
) -> Plan:
    """Return the steps for the options of the command line.

    Args:
        config: A config to train instead of the demo's.
        long: Whether to make the longer run.
        from_scratch: Whether to train from scratch for comparison.
        skip: Steps to omit, of `SKIPPABLE`.
        shipped: File of the shipped model.
        published: File of the model of the published recipe.

    Raises:
        ConfigError: No step is left.
    """
    pictures = "pictures" not in skip
    if config is not None or not shipped.is_file():
        if "fine-tuning" in skip and config is None:
            raise ConfigError(
                f"{shipped} does not exist, so there is nothing to fine-tune and nothing to show: "
                "remove --skip fine-tuning, or make the file with `make toy-pretrain`"
            )
        default, factors = (LONG_CONFIG, LONG_FACTORS) if long else (DEMO_CONFIG, DEMO_FACTORS)
        return Plan(config or default, factors, pictures=pictures)
    shown = None if "shipped" in skip else shipped
    compared = None if "published" in skip or not published.is_file() else published
    trains = "fine-tuning" not in skip
    if long:
        starts = published if published.is_file() else shipped
        parts = ("img_backbone", "img_neck", "img_aux_head")
        places = (f"{part}.init_cfg.checkpoint={starts}" for part in parts)
        scratch = LONG_CONFIG if from_scratch else None
        return Plan(
            LONG_PRETRAINED_CONFIG, LONG_PRETRAINED_FACTORS, shown, compared, None, tuple(places),
            scratch, pictures, trains,
        )  # fmt: skip
    scratch = DEMO_CONFIG if from_scratch else None
    if not (shown or trains or scratch):
        raise ConfigError("--skip omits every step: keep shipped or fine-tuning")
    return Plan(
        FINE_TUNING_CONFIG, FINE_TUNING_FACTORS, shown, compared, shipped, (), scratch, pictures,
        trains,
    )  # fmt: skip


def run_demo(plan: Plan) -> None:
    """Run all steps and print the table.

    Raises:
        ConfigError: A config cannot be read.
        StepFailed: A step failed, or the model scored below its factors times the prior.
    """
    stem = Path(plan.config).stem
    work_dir, pictures = Path("work_dirs", stem), Path("outputs", stem)
    steps = Steps.load(work_dir / "demo_steps.json")
    data_key = make_data()
    costs = dict(Steps.load(TOY.steps).records)
    prior = score_prior(steps, plan.config, data_key, work_dir)
    others: dict[str, Path] = {}
    if plan.shipped is not None:
        folder = Path("work_dirs", "shipped")
        own = Steps.load(folder / "demo_steps.json")
        others["shipped"] = score_model(own, DEMO_CONFIG, plan.shipped, folder)
        if plan.pictures:
            draw_pictures(own, DEMO_CONFIG, plan.shipped, Path("outputs", "shipped"))
        costs |= {f"shipped model: {name}": record for name, record in own.records.items()}
    if plan.published is not None:
        folder = Path("work_dirs", "published")
        own = Steps.load(folder / "demo_steps.json")
        others["published recipe"] = score_model(own, PUBLISHED_CONFIG, plan.published, folder)
        costs |= {f"published recipe: {name}": record for name, record in own.records.items()}
    if others:
        report_columns("held-out scenes", prior, others)
    scores = others.get("shipped")
    if plan.trains:
        weights = train_model(steps, plan.config, work_dir, data_key, plan.start, plan.options)
        scores = score_model(steps, plan.config, weights, work_dir, plan.options, "scores")
        if plan.pictures:
            draw_pictures(steps, plan.config, weights, pictures, plan.options)
    if plan.from_scratch is not None:
        folder = Path("work_dirs", Path(plan.from_scratch).stem)
        own = Steps.load(folder / "demo_steps.json")
        length = (f"max_epochs={load_config(plan.config).max_epochs}",)
        weights = train_model(own, plan.from_scratch, folder, data_key, options=length)
        others["from scratch"] = score_model(own, plan.from_scratch, weights, folder)
    if scores is None:
        report_columns("held-out scenes", prior, others)
        return
    report(costs | steps.records, scores, prior, pictures, plan.factors, others)


def report_columns(title: str, prior: Path, columns: Mapping[str, Path]) -> None:
    """Print the scores of the prior and of some models."""
    blind = json.loads(prior.read_text())["metrics"]
    print(f"\n| {' | '.join([title, 'image-blind prior', *columns])} |")
    print(f"|{'---|' * (2 + len(columns))}")
    for name, metric in METRICS.items():
        cells = [f"{_score(blind, metric, prior):.2f}"]
        for path in columns.values():
            cells.append(f"{_score(json.loads(path.read_text())['metrics'], metric, path):.2f}")
        print(f"| {name} | {' | '.join(cells)} |")
    print(flush=True)


def report(
    costs: Mapping[str, Record],
    scores: Path,
    prior: Path,
    pictures: Path,
    factors: tuple[float, float],
    others: Mapping[str, Path] | None = None,
) -> None:
    """Print costs and scores; raise StepFailed if the scores are too low.

    Args:
        costs: Records of the steps, by name.
        scores: File of the model's scores.
        prior: File of the prior's.
        pictures: Folder of the pictures.
        factors: Required multiples of the prior's (mIoU, RayIoU).
        others: Files of the scores of other models, by the title of their column.
    """
    model = json.loads(scores.read_text())["metrics"]
    blind = json.loads(prior.read_text())["metrics"]
    print("\n| step | time | peak memory of a process |\n|---|---|---|")
    for name, record in costs.items():
        print(f"| {name} | {record.seconds:.0f} s | {record.peak_memory_mb:.0f} MB |")
    print("\n| held-out scenes | image-blind prior | model | factor |\n|---|---|---|---|")
    failures = []
    for (name, metric), wanted in zip(METRICS.items(), factors, strict=True):
        ours, theirs = _score(model, metric, scores), _score(blind, metric, prior)
        factor = ours / theirs if theirs else float("inf")
        print(f"| {name} | {theirs:.2f} | **{ours:.2f}** | {factor:.2f} |")
        if not (factor > wanted if wanted == 1.0 else factor >= wanted):
            failures.append(f"{name} is {factor:.2f} times the prior's, wanted {wanted:.1f}")
    if others:
        report_columns("held-out scenes", prior, {**others, "model": scores})
    print(f"\npictures: {pictures}/", flush=True)
    if failures:
        raise StepFailed("the model is too weak: " + "; ".join(failures))


def _score(metrics: dict[str, Any], name: str, source: Path) -> float:
    value = metrics.get(name)
    if value is None:
        raise ConfigError(f"{source} has no score '{name}': the config's evaluators must give it")
    return float(value)


def main(arguments: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit code."""
    parser = CommandParser(__doc__)
    parser.add_argument("--long", action="store_true", help="make the longer run (make toy-train)")
    parser.add_argument("--config", type=config_file, help="train this config instead")
    parser.add_argument(
        "--from-scratch", action="store_true", help="train from scratch as well, for comparison"
    )
    parser.add_argument(
        "--skip", nargs="+", choices=SKIPPABLE, default=(), metavar="STEP",
        help=f"steps to omit: {', '.join(SKIPPABLE)}",
    )  # fmt: skip

    def run(args: argparse.Namespace) -> None:
        plan = make_plan(
            config=args.config, long=args.long, from_scratch=args.from_scratch, skip=args.skip
        )
        run_demo(plan)

    return run_command(parser, run, arguments)
