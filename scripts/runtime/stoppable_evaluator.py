"""An evaluator whose processes leave an evaluation together."""

from __future__ import annotations

from typing import Any

from mmengine.dist import is_distributed
from mmengine.evaluator import Evaluator

from scripts.runtime.agreement import any_process
from scripts.runtime.stop_signals import StopRequested, StopSignals


class StoppableEvaluator(Evaluator):
    """mmengine's Evaluator that asks all processes whether one was told to stop.

    It asks when a process has seen its samples: from here on the processes wait for each other.
    """

    stop_signals: StopSignals

    def evaluate(self, size: int) -> dict[str, Any]:
        """Compute the metrics.

        Raises:
            StopRequested: A process of a distributed training was told to stop.
        """
        signals = self.stop_signals
        if signals.is_installed and is_distributed() and any_process(signals.received is not None):
            raise StopRequested
        metrics: dict[str, Any] = super().evaluate(size)
        return metrics
