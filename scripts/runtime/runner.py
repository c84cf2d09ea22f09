"""Building of a Runner from a config file and command-line options."""

from __future__ import annotations

import argparse
import copy
import logging
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mmengine.config import Config
from mmengine.evaluator import Evaluator
from mmengine.optim import OptimWrapper
from mmengine.registry import RUNNERS
from mmengine.runner import Runner
from torch import Tensor, nn

from scripts.runtime import parameter_groups, schedules
from scripts.runtime.building import named_config_keys
from scripts.runtime.checkpoint import (
    allow_checkpoint_classes,
    fit_weights,
    weights_of,
)
from scripts.runtime.command_line import add_config_arguments
from scripts.runtime.config import load_config
from scripts.runtime.errors import ConfigError
from scripts.runtime.fit import fit_config
from scripts.runtime.launch import Launch
from scripts.runtime.layer_decay import with_layer_decay
from scripts.runtime.model_options import checkpoint_activations, compile_parts
from scripts.runtime.preflight import check_evaluation
from scripts.runtime.replacements import replaced
from scripts.runtime.resumable_runner import ResumableRunner, bare_model
from scripts.runtime.sections import check_custom_keys
from scripts.runtime.settings import did_you_mean
from scripts.runtime.stoppable_evaluator import StoppableEvaluator
from scripts.runtime.tolerant_logging import tolerate_write_errors
from scripts.runtime.watched_loader import WatchedDataLoader
from scripts.runtime.weights_origin import (
    OriginKind,
    WeightsOrigin,
    read_on_every_process,
    settle_pretrained,
)

__all__ = [
    "OpusRunner",
    "add_common_arguments",
    "bare_model",
    "build_runner",
    "prepare_config",
]


def add_common_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options that train.py and val.py share."""
    add_config_arguments(parser)
    parser.add_argument(
        "--work-dir", help="logs and checkpoints (default: work_dirs/NAME OF THE CONFIG)"
    )


def prepare_config(
    path: str, options: Mapping[str, Any], work_dir: str | None, *, trains: bool = True
) -> Config:
    """Return the resolved config of a run; it is the same on every process.

    Args:
        path: Config file.
        options: `--cfg-options`.
        work_dir: Overrides the config's work dir; the default is `work_dirs/<name of the config>`.
        trains: Whether the run trains.
    """
    cfg = load_config(path, options)
    if trains:
        check_evaluation(cfg)
    if work_dir is not None:
        cfg.work_dir = work_dir
    elif cfg.get("work_dir") is None:
        cfg.work_dir = str(Path("work_dirs", Path(path).stem))
    return cfg


@RUNNERS.register_module()
class OpusRunner(ResumableRunner):
    """mmengine's Runner for the entry points.

    Parts of mmengine that can lose work are replaced by this project's classes (see
    `scripts.runtime.replacements`). Configurations keep mmengine's names.

    Attributes:
        resolved_cfg: The config before it was fitted to this process. It is written to the work
            dir, and can be used with any number of processes.
    """

    cfg: Config
    resolved_cfg: Config | None = None
    _is_compiled = False

    def dump_config(self) -> None:
        """Write the config to the work dir."""
        if self.resolved_cfg is None:
            super().dump_config()
            return
        fitted, self.cfg = self.cfg, self.resolved_cfg
        try:
            super().dump_config()
        finally:
            self.cfg = fitted

    def train(self) -> nn.Module:
        """Train, with this project's activation checkpointing; see mmengine."""
        names = self.cfg.pop("activation_checkpointing", None)
        if names is not None:
            if self.cfg.get("compile"):
                raise ConfigError(
                    "activation_checkpointing and compile exclude each other: leave one of them out"
                )
            checkpoint_activations(bare_model(self), names)
            self.logger.info(f"activations are computed twice to save memory: {names}")
        return super().train()

    def _maybe_compile(self, target: str) -> None:
        """Compile the parts that the config names; mmengine would compile the whole step."""
        if not self._is_compiled:
            self._is_compiled = compile_parts(bare_model(self), self.cfg.get("compile"))

    def register_hook(self, hook: Any, priority: Any = None) -> None:
        """Register a hook; mmengine's hooks are replaced by this project's."""
        super().register_hook(replaced(hook), priority)

    def build_train_loop(self, loop: Any) -> Any:
        """Build the training loop; mmengine's loops are replaced by this project's."""
        if isinstance(loop, Mapping) and "type" not in loop:
            loop = dict(loop)
            by_epoch = loop.pop("by_epoch", True)
            loop["type"] = "EpochBasedTrainLoop" if by_epoch else "IterBasedTrainLoop"
        return super().build_train_loop(replaced(loop))

    def build_visualizer(self, visualizer: Any = None) -> Any:
        """Build the visualizer, whose backends do not stop the run if the disk is full."""
        built = super().build_visualizer(visualizer)
        tolerate_write_errors(built, self.logger)
        return built

    def build_evaluator(self, evaluator: Any) -> Any:
        """Build an evaluator whose processes stop together after a signal.

        All metrics gather results by collectives of the process group, not through files, because
        machines may not share a disk.
        """
        built = super().build_evaluator(evaluator)
        for metric in getattr(built, "metrics", []):
            if getattr(metric, "collect_device", "") == "cpu" and metric.collect_dir is None:
                metric.collect_device = "gpu"  # mmengine's name for collectives, including gloo
        if type(built) is Evaluator:
            built.__class__ = StoppableEvaluator
            built.stop_signals = self.stop_signals
            for metric in built.metrics:
                # By collectives: mmengine's CPU method writes files to a shared disk.
                metric.collect_device = "gpu"
        return built

    def build_dataloader(  # type: ignore[override]
        self, dataloader: Any, seed: int | None = None, diff_rank_seed: bool = False
    ) -> WatchedDataLoader:
        """Build a data loader that signals can interrupt, with batches on the model's device."""
        loader = Runner.build_dataloader(dataloader, seed=seed, diff_rank_seed=diff_rank_seed)
        parameter = next(self.model.parameters(), None)
        device = None if parameter is None else parameter.device
        return WatchedDataLoader.watch(loader, self.stop_signals, device)

    def build_optim_wrapper(self, optim_wrapper: Any) -> Any:
        """Build the optimiser, and log one line per learning rate.

        mmengine logs three lines for every parameter that a rule of `paramwise_cfg` applies to.

        Raises:
            ConfigError: A rule of `paramwise_cfg.custom_keys` applies to no parameter.
        """
        is_config = isinstance(optim_wrapper, Mapping) and "constructor" not in optim_wrapper
        if is_config:
            names = [name for name, _ in bare_model(self).named_parameters()]
            check_custom_keys(optim_wrapper, names)
            optim_wrapper = with_layer_decay(optim_wrapper, names)
            if "optimizer" in optim_wrapper:
                optim_wrapper = replaced(optim_wrapper, "OptimWrapper")
                optim_wrapper["constructor"] = parameter_groups.CONSTRUCTOR
        self.logger.addFilter(_is_no_parameter_rule)
        try:
            built = super().build_optim_wrapper(optim_wrapper)
        finally:
            self.logger.removeFilter(_is_no_parameter_rule)
        if built is not optim_wrapper and isinstance(built, OptimWrapper):
            self._configured = schedules.group_options(built)
            settings = Counter(
                (group["lr"], group.get("weight_decay", 0.0))
                for group in built.param_groups
                for _ in group["params"]
            )
            for (rate, decay), count in sorted(settings.items(), reverse=True):
                self.logger.info(f"{count} tensors: learning rate {rate:g}, weight decay {decay:g}")
        return built


def build_runner(
    cfg: Config, launch: Launch, origin: WeightsOrigin | None = None, *, trains: bool = True
) -> OpusRunner:
    """Build the runner of this process; errors name config keys.

    Args:
        cfg: The resolved config; it is not changed, and is written to the work dir.
        launch: Rank and number of processes.
        origin: Origin of a training's weights.
        trains: Whether the run trains.

    Raises:
        ConfigError: The config has an invalid key or does not fit the number of processes, or a
            pretrained file is missing.
        CheckpointError: The weights file does not fit the model.
    """
    allow_checkpoint_classes()
    runner_class = _runner_class(cfg.get("runner_type"))
    fitted = copy.deepcopy(cfg)
    if origin is not None:
        origin.apply_to(fitted)
    notes = fit_config(fitted, launch, trains=trains)
    try:
        with named_config_keys(fitted):
            runner = runner_class.from_cfg(fitted)
    except ImportError as error:  # e.g. of a visualisation back end
        raise ConfigError(f"a part of the config needs a library: {error}") from error
    assert isinstance(runner, OpusRunner)
    runner.resolved_cfg = cfg
    runner.dump_config()
    runner.origin = origin
    for note in notes:
        runner.logger.info(note)
    if origin is not None:
        for note in settle_pretrained(bare_model(runner), _coming_weights(runner, origin)):
            runner.logger.info(note)
    return runner


def _runner_class(name: str | None) -> type[OpusRunner]:
    """Return the class given by `runner_type` of a config.

    Raises:
        ConfigError: It is not registered, or not derived from OpusRunner.
    """
    if name in (None, "Runner"):
        return OpusRunner
    kind = RUNNERS.get(name)
    if kind is None:
        near = did_you_mean(str(name), RUNNERS.module_dict)
        raise ConfigError(
            f"runner_type is '{name}', which is not registered{near}: check the name and "
            "custom_imports, or leave it out"
        )
    if not (isinstance(kind, type) and issubclass(kind, OpusRunner)):
        raise ConfigError(
            f"runner_type is '{name}', whose checkpoints cannot be resumed exactly, nor read "
            "without running their code: leave it out, or derive a runner from OpusRunner"
        )
    return kind


def _coming_weights(runner: OpusRunner, origin: WeightsOrigin) -> Mapping[str, Tensor] | None:
    """Return the weights that a checkpoint will fill, if a part names a pretrained file."""
    model = bare_model(runner)
    if origin.path is None or not any(getattr(m, "init_cfg", None) for m in model.modules()):
        return None
    if origin.kind is OriginKind.RESUME:
        return weights_of(read_on_every_process(origin.path), model)
    return fit_weights(
        model,
        origin.path,
        runner.cfg.get("revise_keys") or (),
        drop_mismatched=origin.drop_mismatched,
    ).weights


def _is_no_parameter_rule(record: logging.LogRecord) -> bool:
    return not record.getMessage().startswith("paramwise_options -- ")
