"""From a config file and command-line options to a Runner."""

from __future__ import annotations

import argparse
import logging
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mmengine.config import Config
from mmengine.model import is_model_wrapper
from mmengine.optim import OptimWrapper
from mmengine.runner import Runner, find_latest_checkpoint
from torch import nn

from models.errors import does_not_exist
from scripts.runtime.building import named_config_keys
from scripts.runtime.checkpoint import (
    CheckpointError,
    allow_checkpoint_classes,
    check_fit,
    read_checkpoint,
    start_from,
    weights_of,
)
from scripts.runtime.command_line import add_config_arguments
from scripts.runtime.config import load_config
from scripts.runtime.fit import fit_config
from scripts.runtime.launch import Launch
from scripts.runtime.preflight import check_evaluation


def add_common_arguments(parser: argparse.ArgumentParser) -> None:
    """Options that train.py and val.py share."""
    add_config_arguments(parser)
    parser.add_argument(
        "--work-dir", help="logs and checkpoints (default: work_dirs/NAME OF THE CONFIG)"
    )


def prepare_config(
    path: str,
    options: Mapping[str, Any],
    work_dir: str | None,
    launch: Launch,
    *,
    trains: bool = True,
) -> tuple[Config, list[str]]:
    """Config of a run, fitted to this process, and notes for its log.

    Args:
        path: Config file.
        options: `--cfg-options`.
        work_dir: Overrides the config's; the default is `work_dirs/<name of the config>`.
        launch: This process among the others.
        trains: Whether the run trains.
    """
    cfg = load_config(path, options)
    if trains:
        check_evaluation(cfg)
    if work_dir is not None:
        cfg.work_dir = work_dir
    elif cfg.get("work_dir") is None:
        cfg.work_dir = str(Path("work_dirs", Path(path).stem))
    return cfg, fit_config(cfg, launch, trains=trains)


def _is_no_parameter_rule(record: logging.LogRecord) -> bool:
    return not record.getMessage().startswith("paramwise_options -- ")


class OpusRunner(Runner):
    """mmengine's Runner with checkpoints read safely and checked against the model."""

    _has_loaded: bool

    def build_optim_wrapper(self, optim_wrapper: Any) -> Any:
        """Build the optimiser, and log one line per learning rate.

        mmengine logs three lines for every parameter that a rule of `paramwise_cfg` touches.
        """
        self.logger.addFilter(_is_no_parameter_rule)
        try:
            built = super().build_optim_wrapper(optim_wrapper)
        finally:
            self.logger.removeFilter(_is_no_parameter_rule)
        if built is not optim_wrapper and isinstance(built, OptimWrapper):
            settings = Counter(
                (group["lr"], group.get("weight_decay", 0.0))
                for group in built.param_groups
                for _ in group["params"]
            )
            for (rate, decay), count in sorted(settings.items(), reverse=True):
                self.logger.info(f"{count} tensors: learning rate {rate:g}, weight decay {decay:g}")
        return built

    def load_or_resume(self) -> None:
        """Resume or start from the checkpoint that the config names.

        `resume` without `load_from` takes the latest checkpoint of the work dir and starts anew if
        there is none. mmengine's own version accepts a checkpoint of any other model silently.
        The config's `revise_keys` rename what `load_from` holds.

        Raises:
            CheckpointError: The checkpoint cannot be read, does not fit, or cannot be resumed.
        """
        if self._has_loaded:
            return
        if self._resume:
            path = self._load_from or find_latest_checkpoint(self.work_dir)
            if path is None:
                self.logger.info(f"no checkpoint in {self.work_dir} to resume: starting anew")
                return
            checkpoint = read_checkpoint(path)
            check_fit(weights_of(checkpoint, bare_model(self)), bare_model(self), path)
            if "optimizer" not in checkpoint:
                raise CheckpointError(
                    f"{path} holds weights only and cannot be resumed: use --load-from"
                )
            self.resume(str(path))
        elif self._load_from is not None:
            if not Path(self._load_from).is_file():
                raise CheckpointError(
                    f"load_from {does_not_exist(self._load_from)}: put the checkpoint there "
                    "(fusion models: scripts/gen_fusion_pretrain_model.py writes it), or train "
                    "without it with --cfg-options load_from=None"
                )
            revise_keys = self.cfg.get("revise_keys") or ()
            self.logger.info(start_from(bare_model(self), self._load_from, revise_keys))
        self._has_loaded = True


def build_runner(cfg: Config, notes: list[str]) -> OpusRunner:
    """Build the runner, with errors that name config keys, and log the notes."""
    allow_checkpoint_classes()
    with named_config_keys(cfg):
        runner = OpusRunner.from_cfg(cfg)
    for note in notes:
        runner.logger.info(note)
    return runner


def bare_model(runner: Runner) -> nn.Module:
    """The runner's model without its data-parallel wrapper."""
    return runner.model.module if is_model_wrapper(runner.model) else runner.model
