"""Train a model: `python train.py --config configs/...py`; on N processes: dist_train.sh."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from mmengine.runner import find_latest_checkpoint

from scripts.runtime.building import named_config_keys
from scripts.runtime.command_line import CommandParser, run_command
from scripts.runtime.errors import ConfigError
from scripts.runtime.hooks import StopOnSignalHook
from scripts.runtime.host_allocator import keep_freed_memory
from scripts.runtime.launch import launched
from scripts.runtime.pretrained import settle_pretrained
from scripts.runtime.runner import add_common_arguments, build_runner, prepare_config


def command_parser() -> CommandParser:
    """Command line of train.py."""
    parser = CommandParser(__doc__)
    add_common_arguments(parser)
    parser.add_argument(
        "--resume",
        nargs="?",
        const="auto",
        metavar="CHECKPOINT",
        help="go on where the run in the work dir was left (or from CHECKPOINT): weights, "
        "optimiser, schedule and place in the epoch; a run without a checkpoint starts anew",
    )
    parser.add_argument(
        "--load-from", metavar="CHECKPOINT", help="start with the weights of CHECKPOINT that fit"
    )
    return parser


def train(args: argparse.Namespace) -> None:
    """Train as the command line says.

    Raises:
        ConfigError: The options contradict each other or the config.
        CheckpointError: A checkpoint cannot be read or does not fit.
        TrainingInterrupted: A signal stopped the training; a checkpoint has been saved.
    """
    if args.resume and args.load_from:
        raise ConfigError("--resume and --load-from exclude each other: give one of them")
    keep_freed_memory()
    with launched() as launch:
        cfg, notes = prepare_config(args.config, args.cfg_options, args.work_dir, launch)
        if args.resume:
            cfg.resume = True
            cfg.load_from = None if args.resume == "auto" else args.resume
        elif args.load_from:
            cfg.resume, cfg.load_from = False, args.load_from
        latest = cfg.get("load_from") or (
            find_latest_checkpoint(cfg.work_dir) if cfg.get("resume") else None
        )
        notes += settle_pretrained(cfg, is_loaded_later=latest is not None)
        runner = build_runner(cfg, notes)
        stop_hook = StopOnSignalHook()
        runner.register_hook(stop_hook)
        # Data sets, optimiser and loops are built in train(), hence the named keys.
        with stop_hook.installed(), named_config_keys(cfg):
            runner.train()


def main(arguments: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit code."""
    return run_command(command_parser(), train, arguments)


if __name__ == "__main__":
    sys.exit(main())
