"""Score predictions on disk without a model.

    python val.py CONFIG --predictions DIR [--out scores.json]
    python scripts/score_predictions.py CONFIG --predictions DIR    # the same

DIR contains a file `<sample token>.npz` per sample of the config's test split, in one of the
formats of `loaders/predictions.py`: `coords` [n, 3] and `labels` [n] of the occupied voxels, or a
dense label grid `semantics` [X, Y, Z].
"""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mmengine.registry import init_default_scope

from loaders.errors import MissingDataError
from loaders.predictions import load_prediction, prediction_path
from loaders.sample import OccSample
from models.errors import does_not_exist
from scripts.runtime.atomic_write import check_file_target, check_folder_target
from scripts.runtime.cluster import adopt_cluster_variables
from scripts.runtime.command_line import CommandParser, number_from, run_command
from scripts.runtime.config import load_config
from scripts.runtime.errors import ConfigError
from scripts.runtime.evaluators import MASKS, choose_masks
from scripts.runtime.report import report_table, score_report, write_report
from scripts.runtime.runner import add_common_arguments
from scripts.scoring.scorer import split_scorer


def command_parser(description: str | None, *, needs_predictions: bool = False) -> CommandParser:
    """Return the parser of val.py and scripts/score_predictions.py (which needs predictions)."""
    parser = CommandParser(description)
    add_common_arguments(parser)
    parser.add_argument("--weights", metavar="CHECKPOINT", help="checkpoint of the model to score")
    parser.add_argument(
        "--predictions",
        metavar="DIR",
        required=needs_predictions,
        help="score these predictions without a model",
    )
    parser.add_argument(
        "--workers",
        type=number_from(0),
        metavar="N",
        help="processes for --predictions; 0 runs in the main process (default: 0)",
    )
    parser.add_argument(
        "--save-predictions", metavar="DIR", help="write compressed sparse voxels per sample"
    )
    parser.add_argument(
        "--submission", metavar="DIR", help="write the Occ3D benchmark's file per sample"
    )
    parser.add_argument(
        "--masks",
        nargs="+",
        choices=MASKS,
        default=(),
        help="score the voxels visible to cameras, to the LiDAR, to both, or all "
        "(none); several masks give several scores (default: the config's)",
    )
    parser.add_argument(
        "--out",
        metavar="FILE",
        help="scores as JSON (default: metrics.json next to the log), and as a table in FILE.txt",
    )
    return parser


def check_arguments(args: argparse.Namespace) -> None:
    """Check for missing and contradictory options, and for files that cannot be written.

    Raises:
        ConfigError: The options are invalid; the message states the correction.
    """
    if args.weights is None and args.predictions is None:
        raise ConfigError(
            "nothing to score: give --weights CHECKPOINT for a model, or --predictions DIR for "
            "predictions on disk"
        )
    if args.predictions is None and args.workers is not None:
        raise ConfigError("--workers is for --predictions: use dist_val.sh to run a model")
    for option in ("weights", "save_predictions", "submission"):
        if args.predictions is not None and getattr(args, option) is not None:
            raise ConfigError(
                f"--predictions scores files without a model: leave "
                f"--{option.replace('_', '-')} out, or --predictions"
            )
    # Check before the evaluation, not after it.
    if args.out is not None:
        check_file_target("--out", args.out)
    for option in ("work_dir", "save_predictions", "submission"):
        if getattr(args, option) is not None:
            check_folder_target(f"--{option.replace('_', '-')}", getattr(args, option))


def evaluate_predictions(args: argparse.Namespace) -> dict[str, Any]:
    """Score the files of `--predictions` and write the scores.

    If it is started on N processes, the first one uses N workers and the others do nothing.

    Returns:
        Values by metric name.

    Raises:
        ConfigError: The config's metrics need a model.
        MissingDataError: A prediction is missing.
        BadDataError: A prediction is invalid or does not fit.
    """
    adopt_cluster_variables()
    if int(os.environ.get("RANK", "0")):
        return {}
    workers = args.workers
    if workers is None:
        workers = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    folder = Path(args.predictions)
    report = score_folder(args.config, args.cfg_options, folder, workers, args.masks)
    work_dir = Path(args.work_dir or Path("work_dirs", Path(args.config).stem))
    default = work_dir / time.strftime("%Y%m%d_%H%M%S") / "metrics.json"
    print(report_table(report))
    print(f"scores written to {write_report(args.out or default, report)}")
    return report["metrics"]


def score_folder(
    config: str,
    options: Mapping[str, Any],
    folder: Path,
    workers: int,
    masks: Sequence[str] = (),
) -> dict[str, Any]:
    """Return the scores of a folder's predictions in the form reported by val.py.

    Args:
        config: Config file.
        options: `--cfg-options`.
        folder: Folder with one prediction per sample.
        workers: Number of processes; 0 runs in this process.
        masks: See `scripts.runtime.evaluators.choose_masks`.

    Raises:
        MissingDataError: The folder or a prediction does not exist.
        BadDataError: A prediction is invalid or does not fit.
    """
    if not folder.is_dir():
        fault = f"{folder} is a file" if folder.exists() else does_not_exist(folder)
        raise MissingDataError(f"folder {fault}: give the folder with the predictions")
    start = time.monotonic()
    cfg = load_config(config, options)
    choose_masks(cfg, masks)
    init_default_scope(cfg.get("default_scope", "mmengine"))
    scorer = split_scorer(cfg)

    def read(sample: OccSample) -> Mapping[str, Any]:
        path = prediction_path(folder, sample.sample_token)
        return load_prediction(path, sample.grid_shape, len(sample.class_names))

    metrics = scorer.score({"predictions": read}, workers)["predictions"]
    return score_report(
        metrics,
        config=config,
        cfg_options=dict(options),
        predictions=str(folder),
        processes=max(1, workers),
        num_samples=len(scorer.dataset),
        seconds=time.monotonic() - start,
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """Run scripts/score_predictions.py and return the exit code."""

    def run(args: argparse.Namespace) -> None:
        check_arguments(args)
        evaluate_predictions(args)

    return run_command(command_parser(__doc__, needs_predictions=True), run, arguments)
