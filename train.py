"""Train a model: `python train.py CONFIG`; on N processes: dist_train.sh."""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence
from pathlib import Path

from mmengine.config import Config

from scripts.runtime.building import named_config_keys
from scripts.runtime.checkpoint_files import pointed_checkpoint, remove_leftovers
from scripts.runtime.command_line import CommandParser, run_command
from scripts.runtime.errors import LAUNCHED, RESTARTS
from scripts.runtime.finite_steps import FiniteStepsHook
from scripts.runtime.hooks import StopOnSignalHook
from scripts.runtime.host_allocator import keep_freed_memory
from scripts.runtime.launch import Launch, launched, leave
from scripts.runtime.runner import add_common_arguments, build_runner, prepare_config
from scripts.runtime.weights_origin import checkpoint_folders, find_origin
from scripts.runtime.work_dir_lock import locked_work_dir


def command_parser() -> CommandParser:
    """Return the parser of train.py."""
    parser = CommandParser(__doc__)
    add_common_arguments(parser)
    parser.add_argument(
        "--resume",
        nargs="?",
        const="auto",
        metavar="CHECKPOINT",
        help="continue the run of the work dir (or of CHECKPOINT): weights, optimiser, "
        "schedule and place in the epoch; without a checkpoint, start from the beginning",
    )
    parser.add_argument(
        "--load-from", metavar="CHECKPOINT", help="start with the fitting weights of CHECKPOINT"
    )
    parser.add_argument(
        "--drop-mismatched",
        action="store_true",
        help="with --load-from, leave out weights of another shape or range",
    )
    return parser


def train(args: argparse.Namespace) -> None:
    """Train a model.

    Raises:
        ConfigError: The options contradict each other or the config.
        CheckpointError: A checkpoint cannot be read or does not fit.
        TrainingInterrupted: A signal stopped the training; a checkpoint has been saved.
    """
    keep_freed_memory()
    with launched() as launch:
        cfg = prepare_config(args.config, args.cfg_options, args.work_dir)
        with locked_work_dir(cfg.work_dir, launch):
            _train(args, cfg, launch)


def _train(args: argparse.Namespace, cfg: Config, launch: Launch) -> None:
    goes_on = _is_restart_with_checkpoint(cfg)
    origin = find_origin(
        cfg,
        resume="auto" if goes_on else args.resume,
        load_from=None if goes_on else args.load_from,
        drop_mismatched=args.drop_mismatched and not goes_on,
    )
    if launch.is_main:
        remove_leftovers(cfg.work_dir)
    runner = build_runner(cfg, launch, origin)
    if not any(isinstance(hook, FiniteStepsHook) for hook in runner.hooks):
        runner.register_hook(FiniteStepsHook())
    runner.register_hook(StopOnSignalHook())
    # Data sets, optimiser and loops are built in train(), so errors must name keys here.
    with runner.stop_signals.installed(), named_config_keys(cfg):
        runner.train()


def _is_restart_with_checkpoint(cfg: Config) -> bool:
    """Return whether the launcher restarted the processes after they saved a checkpoint.

    A checkpoint from before the launcher's start does not belong to this run. Only the first
    process's result is used; see `find_origin`.
    """
    if not int(os.environ.get(RESTARTS, "0")):
        return False
    path = pointed_checkpoint(cfg.work_dir, [Path(cfg.work_dir), *checkpoint_folders(cfg)])
    return path is not None and path.stat().st_mtime >= float(os.environ[LAUNCHED])


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code."""
    return run_command(command_parser(), train, arguments)


if __name__ == "__main__":
    leave(main())
