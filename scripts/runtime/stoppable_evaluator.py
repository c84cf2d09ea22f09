"""An evaluator whose processes stop an evaluation together."""

from __future__ import annotations

from typing import Any

from mmengine.dist import is_distributed
from mmengine.evaluator import Evaluator

from scripts.runtime.agreement import any_process
from scripts.runtime.stop_signals import StopRequested, StopSignals


class StoppableEvaluator(Evaluator):
    """mmengine's Evaluator that stops all processes if one has received a stop signal.

    The check takes place when a process has finished its samples. From there on, the processes wait
    for each other.
    """

    stop_signals: StopSignals

    def evaluate(self, size: int) -> dict[str, Any]:
        """Compute the metrics.

        Raises:
            StopRequested: A process of a distributed training received a stop signal.
        """
        signals = self.stop_signals
        if signals.is_installed and is_distributed() and any_process(signals.received is not None):
            raise StopRequested
        metrics: dict[str, Any] = super().evaluate(size)
        return metrics
