"""A hook that records a training, for process_equality.py."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from mmengine.dist import get_rank
from mmengine.hooks import Hook
from mmengine.model import is_model_wrapper
from mmengine.registry import HOOKS
from torch import nn


@HOOKS.register_module(force=True)
class NotedTraining(Hook):
    """Write losses of every step, samples, scores and weights of every process to the work dir.

    Args:
        freeze_norms: Keep batch norms in eval mode.
    """

    priority = "VERY_LOW"

    def __init__(self, freeze_norms: bool) -> None:
        self.freeze_norms = freeze_norms
        self.losses: list[float] = []
        self.tokens: list[list[str]] = []
        self.scores: dict[str, float] = {}

    def before_train(self, runner: Any) -> None:
        self.start = {name: value.clone() for name, value in self._state(runner).items()}

    def before_train_iter(self, runner: Any, batch_idx: int, data_batch: Any = None) -> None:
        self.tokens.append(sorted(s.sample_token for s in data_batch["data_samples"]))
        if self.freeze_norms:
            for module in runner.model.modules():
                if isinstance(module, nn.modules.batchnorm._BatchNorm):
                    module.eval()

    def after_train_iter(
        self, runner: Any, batch_idx: int, data_batch: Any = None, outputs: Any = None
    ) -> None:
        self.losses.append(float(outputs["loss"]))

    def after_val_epoch(self, runner: Any, metrics: dict[str, float] | None = None) -> None:
        self.scores = dict(metrics or {})

    def after_train(self, runner: Any) -> None:
        folder, rank = Path(runner.work_dir), get_rank()
        noted = dict(losses=self.losses, tokens=self.tokens, scores=self.scores)
        (folder / f"noted{rank}.json").write_text(json.dumps(noted, default=float))
        weights = dict(start=self.start, end=self._state(runner))
        torch.save(weights, folder / f"weights{rank}.pth")

    @staticmethod
    def _state(runner: Any) -> dict[str, torch.Tensor]:
        model = runner.model.module if is_model_wrapper(runner.model) else runner.model
        return dict(model.state_dict())
