"""From a config file and command-line options to a Runner."""

from __future__ import annotations

import argparse
import logging
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mmengine.config import Config, DictAction
from mmengine.evaluator import Evaluator
from mmengine.optim import OptimWrapper
from mmengine.runner import Runner
from torch import Tensor

from scripts.runtime import schedules
from scripts.runtime.checkpoint import (
    allow_checkpoint_classes,
    fit_weights,
    weights_of,
)
from scripts.runtime.config import fit_config, load_config, named_config_keys
from scripts.runtime.launch import Launch
from scripts.runtime.resumable_runner import ResumableRunner, bare_model
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

# Parts of mmengine and what the entry points use in their place.
REPLACEMENTS = {
    "CheckpointHook": "DurableCheckpointHook",
    "EpochBasedTrainLoop": "ResumableEpochTrainLoop",
    "IterBasedTrainLoop": "ResumableIterTrainLoop",
    "OptimWrapper": "FiniteOptimWrapper",
    "AmpOptimWrapper": "FiniteAmpOptimWrapper",
}


def add_common_arguments(parser: argparse.ArgumentParser) -> None:
    """Options that train.py and val.py share."""
    parser.add_argument("--config", required=True, help="config file, see configs/")
    parser.add_argument(
        "--work-dir", help="logs and checkpoints (default: work_dirs/NAME OF THE CONFIG)"
    )
    parser.add_argument(
        "--cfg-options",
        nargs="+",
        action=DictAction,
        default={},
        metavar="KEY=VALUE",
        help="fields of the config to replace, e.g. batch_size=4 optim_wrapper.optimizer.lr=1e-4",
    )
    parser.add_argument(
        "--debug", action="store_true", help="show the traceback of every error (or OPUS_DEBUG=1)"
    )


def prepare_config(
    path: str, options: Mapping[str, Any], work_dir: str | None, launch: Launch
) -> tuple[Config, list[str]]:
    """Config of a run, fitted to this process, and notes for its log.

    Args:
        path: Config file.
        options: `--cfg-options`.
        work_dir: Overrides the config's; the default is `work_dirs/<name of the config>`.
        launch: This process among the others.
    """
    cfg = load_config(path, options)
    if work_dir is not None:
        cfg.work_dir = work_dir
    elif cfg.get("work_dir") is None:
        cfg.work_dir = str(Path("work_dirs", Path(path).stem))
    return cfg, fit_config(cfg, launch)


def _replaced(part: Any) -> Any:
    """A part's config with this project's class in the place of mmengine's."""
    if not isinstance(part, Mapping):
        return part
    kind = part.get("type")
    if kind is None and "optimizer" in part and "constructor" not in part:
        kind = "OptimWrapper"
    if kind is None and "by_epoch" in part:
        kind = "EpochBasedTrainLoop" if part["by_epoch"] else "IterBasedTrainLoop"
        part = {key: value for key, value in part.items() if key != "by_epoch"}
    name = kind.rsplit(".", 1)[-1] if isinstance(kind, str) else getattr(kind, "__name__", "")
    return type(part)({**part, "type": REPLACEMENTS[name]}) if name in REPLACEMENTS else part


class OpusRunner(ResumableRunner):
    """mmengine's Runner as the entry points use it.

    Parts of mmengine that lose work are replaced by this project's (see `REPLACEMENTS`), so that
    configurations keep mmengine's names.
    """

    def register_hook(self, hook: Any, priority: Any = None) -> None:
        """Register a hook, with this project's in the place of mmengine's."""
        super().register_hook(_replaced(hook), priority)

    def build_train_loop(self, loop: Any) -> Any:
        """Build the training loop, with this project's in the place of mmengine's."""
        return super().build_train_loop(_replaced(loop))

    def build_visualizer(self, visualizer: Any = None) -> Any:
        """Build the visualizer, whose backends do not end the run when the disk is full."""
        built = super().build_visualizer(visualizer)
        tolerate_write_errors(built, self.logger)
        return built

    def build_evaluator(self, evaluator: Any) -> Any:
        """Build an evaluator whose processes leave together when one was told to stop."""
        built = super().build_evaluator(evaluator)
        if type(built) is Evaluator:
            built.__class__ = StoppableEvaluator
            built.stop_signals = self.stop_signals
            for metric in built.metrics:
                # By collectives: mmengine's way for CPUs writes files to a disk that all share.
                metric.collect_device = "gpu"
        return built

    def build_dataloader(  # type: ignore[override]
        self, dataloader: Any, seed: int | None = None, diff_rank_seed: bool = False
    ) -> WatchedDataLoader:
        """Build a data loader that signals can interrupt."""
        loader = Runner.build_dataloader(dataloader, seed=seed, diff_rank_seed=diff_rank_seed)
        return WatchedDataLoader.watch(loader, self.stop_signals)

    def build_optim_wrapper(self, optim_wrapper: Any) -> Any:
        """Build the optimiser, and log one line per learning rate.

        mmengine logs three lines for every parameter that a rule of `paramwise_cfg` touches.
        """
        self.logger.addFilter(_is_no_parameter_rule)
        try:
            built = super().build_optim_wrapper(_replaced(optim_wrapper))
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


def build_runner(cfg: Config, notes: list[str], origin: WeightsOrigin | None = None) -> OpusRunner:
    """Build the runner, with errors that name config keys, and log the notes.

    Args:
        cfg: The merged config.
        notes: Sentences for the log.
        origin: Where a training's weights come from.

    Raises:
        ConfigError: The config has a wrong key, or a pretrained file is missing.
        CheckpointError: The file that the weights come from does not fit.
    """
    allow_checkpoint_classes()
    with named_config_keys(cfg):
        runner = OpusRunner.from_cfg(cfg)
    runner.origin = origin
    for note in notes:
        runner.logger.info(note)
    if origin is not None:
        for note in settle_pretrained(bare_model(runner), _coming_weights(runner, origin)):
            runner.logger.info(note)
    return runner


def _coming_weights(runner: OpusRunner, origin: WeightsOrigin) -> Mapping[str, Tensor] | None:
    """Weights that a checkpoint will fill; read only if a part wants a pretrained file."""
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
