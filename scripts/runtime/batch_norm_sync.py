"""Batch-norm statistics that are equal on all processes."""

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
    """Yield the running means and variances of the batch norms in training mode."""
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm) and module.training:
            for statistic in (module.running_mean, module.running_var):
                if statistic is not None:
                    yield statistic


def refuse_sync_bn(cfg: Config) -> None:
    """Refuse synchronised batch norm on the CPU, where torch does not support it.

    Raises:
        ConfigError: `sync_bn` is set.
    """
    if cfg.get("sync_bn") is not None:
        raise ConfigError(
            "sync_bn needs GPUs, torch has no synchronised batch norm for the CPU: set sync_bn=None"
        )


@HOOKS.register_module()
class BatchNormSyncHook(Hook):
    """Hook that averages running means and variances over the processes after every iteration.

    In training, every process normalises by the statistics of its own samples; on GPUs,
    `sync_bn='torch'` in the config selects the statistics of the joint batch. In either case the
    running statistics are averaged over the processes, so that evaluation, checkpoints and resumed
    runs use the same model. The averaged variance does not include the variance of the means
    between processes.
    """

    priority = "ABOVE_NORMAL"  # before weights are averaged and checkpoints saved

    def after_train_iter(
        self, runner: Runner, batch_idx: int, data_batch: Any = None, outputs: Any = None
    ) -> None:
        """Average the statistics that this iteration updated."""
        if is_distributed():
            statistics = list(learned_statistics(runner.model))
            if statistics:
                all_reduce_params(statistics, op="mean")
