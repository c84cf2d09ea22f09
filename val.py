"""Score a model: `python val.py --config C --weights W`; on N processes: dist_val.sh."""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from scripts.runtime.checkpoint import load_weights
from scripts.runtime.config import named_config_keys
from scripts.runtime.errors import run_entry_point
from scripts.runtime.hooks import peak_memory_mb
from scripts.runtime.launch import launched
from scripts.runtime.report import score_report, write_json
from scripts.runtime.running import (
    add_common_arguments,
    bare_model,
    build_runner,
    prepare_config,
)


def parse_arguments(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Command line of val.py."""
    parser = argparse.ArgumentParser(description=__doc__)
    add_common_arguments(parser)
    parser.add_argument("--weights", required=True, metavar="CHECKPOINT")
    parser.add_argument(
        "--out", metavar="FILE", help="scores as JSON (default: metrics.json beside the log)"
    )
    return parser.parse_args(arguments)


def evaluate(args: argparse.Namespace) -> dict[str, Any]:
    """Score the checkpoint on the config's test split and write the scores.

    Returns:
        Metric names to values, as written to the JSON file under `metrics`.

    Raises:
        ConfigError: The options contradict the config.
        CheckpointError: The weights cannot be read or are another model's.
    """
    with launched() as launch:
        cfg, notes = prepare_config(args.config, args.cfg_options, args.work_dir, launch)
        cfg.resume, cfg.load_from = False, None
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
            path = write_json(args.out or default, report)
            runner.logger.info(f"scores written to {path}")
    return metrics


def main(arguments: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit code."""
    args = parse_arguments(arguments)

    def run() -> None:
        evaluate(args)

    return run_entry_point(run, debug=args.debug)


if __name__ == "__main__":
    sys.exit(main())
