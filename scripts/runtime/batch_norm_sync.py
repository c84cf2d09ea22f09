"""Batch-norm statistics that are the same on all processes."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from mmengine.config import Config
from mmengine.dist import all_reduce_params, is_distributed
from mmengine.hooks import Hook
from mmengine.registry import HOOKS
from mmengine.runner import Runner
from torch import Tensor, nn

from scripts.runtime.errors import ConfigError


def learned_statistics(model: nn.Module) -> Iterator[Tensor]:
    """Return the running means and variances that batch norms of a model in training mode are
    updating.
    """
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm) and module.training:
            for statistic in (module.running_mean, module.running_var):
                if statistic is not None:
                    yield statistic


def refuse_sync_bn(cfg: Config) -> None:
    """Refuse synchronised batch norm for processes on the CPU, for which torch has none.

    Raises:
        ConfigError: `sync_bn` is set.
    """
    if cfg.get("sync_bn") is not None:
        raise ConfigError(
            "sync_bn needs GPUs, torch has no synchronised batch norm for the CPU: set sync_bn=None"
        )


@HOOKS.register_module()
class BatchNormSyncHook(Hook):
    """Average running means and variances over the processes after every training iteration.

    Every process normalises by the statistics of its own samples in training; `sync_bn='torch'`
    in the config makes them those of the joint batch, on GPUs. The running statistics are the mean
    over the processes in either case, so that evaluation, checkpoints of any kind and resumed runs
    see one model. The mean of variances lacks the variance of the means between processes.
    """

    priority = "ABOVE_NORMAL"  # before averages of weights are taken and checkpoints saved

    def after_train_iter(
        self, runner: Runner, batch_idx: int, data_batch: Any = None, outputs: Any = None
    ) -> None:
        """Average the statistics that this iteration has updated."""
        if is_distributed():
            statistics = list(learned_statistics(runner.model))
            if statistics:
                all_reduce_params(statistics, op="mean")
