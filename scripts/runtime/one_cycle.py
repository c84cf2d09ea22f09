"""One-cycle learning-rate schedule."""

from __future__ import annotations

import math
from typing import Any

from mmengine.optim.scheduler.lr_scheduler import LRSchedulerMixin
from mmengine.optim.scheduler.param_scheduler import _ParamScheduler
from mmengine.registry import PARAM_SCHEDULERS

from scripts.runtime.errors import ConfigError


@PARAM_SCHEDULERS.register_module()
class OneCycleByShareLR(LRSchedulerMixin, _ParamScheduler):
    """Schedule that raises the learning rate to its peak and lowers it again, by half cosines.

    After Smith and Topin, arXiv 1708.07120. Lengths are shares of the training, so that a config
    does not depend on its length. The peak is the configured rate of each parameter group.
    (MMEngine's OneCycleLR has one peak for all groups, and requires the number of steps.)

    Args:
        optimizer: Optimiser, or its wrapper.
        peak_at: Share of the training at which the rate is highest.
        start_factor: First rate divided by the highest.
        end_factor: Last rate divided by the highest.
        begin: First step.
        end: Step after the last one; the runner sets it to the end of the training.
        last_step: See MMEngine.
        by_epoch: Whether steps are epochs; `convert_to_iter_based=True` converts them to
            iterations.
        verbose: Whether to print every rate.

    Raises:
        ConfigError: A share or a factor is out of range.
    """

    def __init__(
        self,
        optimizer: Any,
        peak_at: float = 0.3,
        start_factor: float = 0.04,
        end_factor: float = 1e-3,
        begin: int = 0,
        end: int = int(1e9),
        last_step: int = -1,
        by_epoch: bool = True,
        verbose: bool = False,
    ) -> None:
        for name, value in (
            ("peak_at", peak_at), ("start_factor", start_factor), ("end_factor", end_factor),
        ):  # fmt: skip
            if not 0 <= value <= 1:
                raise ConfigError(f"OneCycleByShareLR: {name} is {value}: use 0 to 1")
        self.peak_at = peak_at
        self.start_factor = start_factor
        self.end_factor = end_factor
        super().__init__(optimizer, begin, end, last_step, by_epoch, verbose)

    @classmethod
    def build_iter_from_epoch(
        cls,
        *args: Any,
        begin: int = 0,
        end: int = int(1e9),
        by_epoch: bool = True,
        epoch_length: int | None = None,
        **kwargs: Any,
    ) -> OneCycleByShareLR:
        """Return the schedule in iterations, given lengths in epochs."""
        assert by_epoch and epoch_length is not None
        kwargs |= dict(begin=begin * epoch_length, end=end * epoch_length, by_epoch=False)
        return cls(*args, **kwargs)

    def factor(self, step: int) -> float:
        """Return the rate at a step of the schedule, divided by the highest rate."""
        last = max(1, self.end - self.begin - 1)
        peak = self.peak_at * last
        if step < peak:
            return _half_cosine(self.start_factor, 1.0, step / peak)
        return _half_cosine(1.0, self.end_factor, (step - peak) / max(last - peak, 1))

    def _get_value(self) -> list[float]:
        return [base * self.factor(self.last_step) for base in self.base_values]


def _half_cosine(start: float, end: float, share: float) -> float:
    return start + (end - start) * (1 - math.cos(math.pi * min(share, 1.0))) / 2
