"""Averaged weights: MMEngine's EMAHook with explicit arguments."""

from __future__ import annotations

from typing import Any

from mmengine.hooks import ema_hook
from mmengine.registry import HOOKS


@HOOKS.register_module(force=True)
class EMAHook(ema_hook.EMAHook):
    """Hook that evaluates and stores a moving average of the weights.

    The optimiser continues to update the weights themselves. MMEngine's hook takes the settings of
    the average as `**kwargs`; explicit arguments allow a config to be checked.

    Args:
        ema_type: `'ExponentialMovingAverage'`, `'MomentumAnnealingEMA'` or
            `'StochasticWeightAverage'`.
        momentum: Weight of the new values in an exponential average, roughly one over the number of
            averaged steps.
        interval: Steps between two updates of the average.
        gamma: Of MomentumAnnealingEMA: controls how long the momentum stays larger at the start.
        update_buffers: Whether batch-norm statistics are averaged too.
        strict_load: See MMEngine.
        begin_iter: First iteration of the average.
        begin_epoch: First epoch of the average.
    """

    def __init__(
        self,
        ema_type: str = "ExponentialMovingAverage",
        momentum: float | None = None,
        interval: int = 1,
        gamma: int | None = None,
        update_buffers: bool = False,
        strict_load: bool = False,
        begin_iter: int = 0,
        begin_epoch: int = 0,
    ) -> None:
        given = dict(momentum=momentum, gamma=gamma)
        options: dict[str, Any] = {k: value for k, value in given.items() if value is not None}
        super().__init__(
            ema_type,
            strict_load,
            begin_iter,
            begin_epoch,
            interval=interval,
            update_buffers=update_buffers,
            **options,
        )
