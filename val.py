"""Score a model: `python val.py --config C --weights W`; on N processes: dist_val.sh.

Predictions on disk, of this or another system, are scored without a model by `--predictions DIR`.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from scripts.runtime.building import named_config_keys
from scripts.runtime.checkpoint import load_weights
from scripts.runtime.errors import ConfigError, run_entry_point
from scripts.runtime.evaluators import MASKS, choose_masks, save_outputs
from scripts.runtime.hooks import peak_memory_mb
from scripts.runtime.host_allocator import keep_freed_memory
from scripts.runtime.launch import launched
from scripts.runtime.report import report_table, score_report, write_report
from scripts.runtime.runner import (
    add_common_arguments,
    bare_model,
    build_runner,
    prepare_config,
)
from scripts.scoring.predictions import score_folder


def parse_arguments(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Command line of val.py."""
    parser = argparse.ArgumentParser(description=__doc__)
    add_common_arguments(parser)
    parser.add_argument("--weights", metavar="CHECKPOINT", help="of the model to score")
    parser.add_argument(
        "--predictions", metavar="DIR", help="score these predictions, without a model"
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
        help="score the voxels that cameras, or the LiDAR, see, or all (default: the config's)",
    )
    parser.add_argument(
        "--out",
        metavar="FILE",
        help="scores as JSON (default: metrics.json beside the log), and as a table in FILE.txt",
    )
    return parser.parse_args(arguments)


def check_arguments(args: argparse.Namespace) -> None:
    """Refuse options that say nothing, or two things at once.

    Raises:
        ConfigError: What is wrong and how to put it right.
    """
    if args.weights is None and args.predictions is None:
        raise ConfigError(
            "nothing to score: give --weights CHECKPOINT for a model, or --predictions DIR for "
            "predictions on disk"
        )
    if args.predictions is None:
        return
    for option in ("weights", "save_predictions", "submission"):
        if getattr(args, option) is not None:
            raise ConfigError(
                f"--predictions scores files without a model: leave "
                f"--{option.replace('_', '-')} out, or --predictions"
            )


def evaluate(args: argparse.Namespace) -> dict[str, Any]:
    """Score the checkpoint on the config's test split and write the scores.

    Returns:
        Metric names to values, as written to the JSON file under `metrics`.

    Raises:
        ConfigError: The options contradict the config.
        CheckpointError: The weights cannot be read or are another model's.
    """
    keep_freed_memory()
    with launched() as launch:
        cfg, notes = prepare_config(
            args.config, args.cfg_options, args.work_dir, launch, trains=False
        )
        cfg.resume, cfg.load_from = False, None
        choose_masks(cfg, args.masks)
        save_outputs(cfg, args.save_predictions, args.submission)
        runner = build_runner(cfg, notes)
        checkpoint = load_weights(bare_model(runner), args.weights)
        start = time.monotonic()
        with named_config_keys(cfg):
            metrics = runner.test()
        seconds = time.monotonic() - start
        if launch.is_main:
            report = score_report(
                metrics,
                config=args.config,
                cfg_options=args.cfg_options,
                checkpoint=asdict(checkpoint),
                num_samples=len(runner.test_dataloader.dataset),
                seconds=seconds,
                peak_memory_mb=peak_memory_mb(),
                device=torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu",
                processes=launch.world_size,
            )
            default = Path(runner.work_dir, runner.timestamp, "metrics.json")
            path = write_report(args.out or default, report)
            runner.logger.info(f"scores written to {path}\n{report_table(report)}")
    return metrics


def evaluate_predictions(args: argparse.Namespace) -> dict[str, Any]:
    """Score the files of `--predictions` and write the scores.

    Started on N processes, the first one works with N workers and the others have nothing to do.

    Returns:
        Metric names to values.

    Raises:
        ConfigError: The config's metrics need a model.
        MissingDataError: A prediction is missing.
        BadDataError: A prediction is broken or does not fit.
    """
    if int(os.environ.get("RANK", "0")):
        return {}
    workers = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    folder = Path(args.predictions)
    report = score_folder(args.config, args.cfg_options, folder, workers, args.masks)
    work_dir = Path(args.work_dir or Path("work_dirs", Path(args.config).stem))
    default = work_dir / time.strftime("%Y%m%d_%H%M%S") / "metrics.json"
    print(report_table(report))
    print(f"scores written to {write_report(args.out or default, report)}")
    return report["metrics"]


def main(arguments: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit code."""
    args = parse_arguments(arguments)

    def run() -> None:
        check_arguments(args)
        if args.predictions is None:
            evaluate(args)
        else:
            evaluate_predictions(args)

    return run_entry_point(run, debug=args.debug)


if __name__ == "__main__":
    sys.exit(main())
