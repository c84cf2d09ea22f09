"""Averaged weights: MMEngine's EMAHook with the settings of its average written out."""

from __future__ import annotations

from typing import Any

from mmengine.hooks import ema_hook
from mmengine.registry import HOOKS


@HOOKS.register_module(force=True)
class EMAHook(ema_hook.EMAHook):
    """Evaluate and store a moving average of the weights; training goes on with the weights.

    MMEngine's hook hands the settings of the average on without a name, so that no config could be
    checked. See there.

    Args:
        ema_type: ``'ExponentialMovingAverage'``, ``'MomentumAnnealingEMA'`` or
            ``'StochasticWeightAverage'``.
        momentum: Share of the new weights in an exponential average: about one over the number of
            steps that it looks back.
        interval: Steps between two updates of the average.
        gamma: Of MomentumAnnealingEMA: how long its momentum is larger at the start.
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
