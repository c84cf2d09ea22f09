"""Train the nano models on hundreds of procedural scenes; write them to pretrain/, with cards.

    python -m scripts.toy_pretrain            # `make toy-pretrain`: hours on two cores
    python -m scripts.toy_pretrain --models opusv2-plus-nano_toy

The scenes differ from those of the demo and cover all lighting conditions. The command may be
interrupted at any time; it then continues where it stopped. It writes to data/, work_dirs/ and
pretrain/ of the current folder, and scores the weights on scenes that are not in the training.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from scripts.runtime.atomic_write import check_folder_target, write_atomically
from scripts.runtime.command_line import CommandParser, run_command
from scripts.toy_runs.ablation import read_cost
from scripts.toy_runs.demo import METRICS
from scripts.toy_runs.model_steps import PRETRAIN, make_data, score_model, score_prior, train_model
from scripts.toy_runs.steps import ROOT, StepFailed, Steps, hash_of

CONFIG = "configs/toy/{name}_pretrain.py"
# Name and description of the models.
MADE = {
    "opusv2-nano_toy": "The nano form of OPUS-V2",
    "opusv2-plus-nano_toy": "The nano form of OPUS-V2 with the parts of docs/recipes.md",
}
MAX_BYTES = 4_000_000
CARD = """# {name}.pth

{what}, trained on procedural scenes: to look at, and to start a training from.

| | |
|---|---|
| weights | all, in half precision: {bytes:,} bytes, SHA-256 `{sha256}` |
| config | `configs/toy/{config}` |
| data | `scripts/make_toy_nuscenes.py {options}`: {scenes} scenes to train on, others to validate on; none of them is one of the demo's (seed 0) |
| training | {iterations:,} iterations in {hours:.1f} h, peak memory {memory:.0f} MB, seed {seed} |
| commit | {commit} |
| date | {time} |
| licence | that of this repository (Apache 2.0); the scenes are computed, no data of others is in them |

Scores of this file on the {samples} validation samples of the same data, in percent:

| | image-blind prior | model |
|---|---|---|
{rows}

Made by `make toy-pretrain`. The whole model: `--load-from pretrain/{name}.pth`. Only the image
network: `configs/_base_/models/resnet18_nano_pretrained.py`.
"""  # noqa: E501


def run_pretrain(out: Path, name: str) -> None:
    """Train, export and score a model, and write its card.

    Args:
        out: Folder for the weights and the card.
        name: One of `MADE`.

    Raises:
        ConfigError: The config cannot be read, or the folder cannot be written.
        StepFailed: A step failed, or the file is larger than it may be.
    """
    check_folder_target("--out", out)
    config = str(ROOT / CONFIG.format(name=name))
    work_dir = Path("work_dirs", Path(config).stem)
    steps = Steps.load(work_dir / "demo_steps.json")
    data_key = make_data(PRETRAIN)
    trained = train_model(steps, config, work_dir, data_key)
    weights = out / f"{name}.pth"
    command = [str(ROOT / "scripts/shrink_checkpoint.py"), str(trained), "--out", str(weights)]
    steps.run("weights in half precision", command, hash_of(trained.read_bytes()), [weights])
    size = weights.stat().st_size
    if size > MAX_BYTES:
        raise StepFailed(
            f"{weights} has {size} bytes, more than {MAX_BYTES}: train a smaller model"
        )
    scores = score_model(steps, config, weights, work_dir)
    prior = score_prior(steps, config, data_key, work_dir)
    text = card(work_dir, name, weights, scores, prior)
    card_file = weights.with_suffix(".md")
    write_atomically(card_file, lambda path: path.write_text(text))
    print(f"{weights} and {card_file} are written\n\n{text}", flush=True)


def card(work_dir: Path, name: str, weights: Path, scores: Path, prior: Path) -> str:
    """Return the text of the card.

    Args:
        work_dir: Work dir of the training.
        name: One of `MADE`.
        weights: The file that was scored.
        scores: File with its scores.
        prior: File with the scores of the image-blind prior.
    """
    report: dict[str, Any] = json.loads(scores.read_text())
    blind = json.loads(prior.read_text())["metrics"]
    cost = read_cost(work_dir, weights)
    made = json.loads((PRETRAIN.root / "toy_nuscenes.json").read_text())
    scenes = round(0.8 * made["options"]["scenes"])  # four of five, see Options.scene_names
    rows = [
        f"| {title} | {blind[metric]:.2f} | {report['metrics'][metric]:.2f} |"
        for title, metric in METRICS.items()
    ]
    return CARD.format(
        name=name,
        what=MADE[name],
        bytes=weights.stat().st_size,
        sha256=report["checkpoint"]["sha256"],
        config=Path(CONFIG.format(name=name)).name,
        options=" ".join(PRETRAIN.options),
        scenes=scenes,
        iterations=cost.iterations,
        hours=cost.iterations * cost.step_seconds / 3600,
        memory=cost.memory_mb,
        seed=0,
        commit=report["commit"],
        time=report["time"],
        samples=report["num_samples"],
        rows="\n".join(rows),
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code."""
    parser = CommandParser(__doc__)
    parser.add_argument("--out", type=Path, default=Path("pretrain"), metavar="FOLDER")
    parser.add_argument(
        "--models", nargs="+", choices=MADE, default=list(MADE), metavar="NAME",
        help=f"models to make: {', '.join(MADE)}",
    )  # fmt: skip

    def run(args: argparse.Namespace) -> None:
        for name in args.models:
            run_pretrain(args.out, name)

    return run_command(
        parser,
        run,
        arguments,
        interrupted="interrupted; the same command continues where it stopped",
    )
