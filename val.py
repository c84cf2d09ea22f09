"""Score a model: `python val.py CONFIG --weights CHECKPOINT`; on N processes: dist_val.sh.

`--predictions DIR` scores predictions on disk, of this or another system, without a model.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from models.errors import does_not_exist
from scripts.runtime.building import named_config_keys
from scripts.runtime.checkpoint import CheckpointError, load_weights
from scripts.runtime.command_line import run_command
from scripts.runtime.evaluators import choose_masks, save_outputs
from scripts.runtime.hooks import peak_memory_mb
from scripts.runtime.host_allocator import keep_freed_memory
from scripts.runtime.launch import launched, leave
from scripts.runtime.report import report_table, score_report, write_report
from scripts.runtime.runner import bare_model, build_runner, prepare_config
from scripts.runtime.weights_origin import OriginKind, WeightsOrigin
from scripts.scoring.predictions import check_arguments, command_parser, evaluate_predictions


def evaluate(args: argparse.Namespace) -> dict[str, Any]:
    """Score the checkpoint on the config's test split and write the scores.

    Returns:
        Values by metric name, as written to the JSON file under `metrics`.

    Raises:
        ConfigError: The options contradict the config.
        CheckpointError: The weights cannot be read or belong to another model.
    """
    keep_freed_memory()
    with launched() as launch:
        cfg = prepare_config(args.config, args.cfg_options, args.work_dir, trains=False)
        cfg.resume, cfg.load_from = False, None
        choose_masks(cfg, args.masks)
        save_outputs(cfg, args.save_predictions, args.submission)
        if not Path(args.weights).exists():  # check before a work dir is created
            raise CheckpointError(
                f"checkpoint {does_not_exist(args.weights)}: give the .pth file that train.py wrote"
            )
        runner = build_runner(cfg, launch, trains=False)
        checkpoint = load_weights(bare_model(runner), args.weights)
        runner.origin = WeightsOrigin(OriginKind.WEIGHTS, args.weights)
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


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code."""

    def run(args: argparse.Namespace) -> None:
        check_arguments(args)
        if args.predictions is None:
            evaluate(args)
        else:
            evaluate_predictions(args)

    return run_command(command_parser(__doc__), run, arguments)


if __name__ == "__main__":
    leave(main())
