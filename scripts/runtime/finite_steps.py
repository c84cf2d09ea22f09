"""Skip optimiser steps with non-finite loss or gradient, count them, and stop if they persist.

A skipped step leaves weights, optimiser and buffers (batch-norm statistics) unchanged. Losses,
gradient norm and loss scale are read together, with one GPU synchronisation per step.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from mmengine.hooks import Hook
from mmengine.model import is_model_wrapper
from mmengine.optim import AmpOptimWrapper, OptimWrapper
from mmengine.registry import HOOKS, OPTIM_WRAPPERS
from mmengine.runner import Runner
from torch import Tensor, nn

from models.errors import UserError
from scripts.runtime.agreement import any_process, of_every_process
from scripts.runtime.checkpoint_files import pointed_checkpoint
from scripts.runtime.errors import ConfigError

NUM_NAMED_SAMPLES = 8


class TrainingDivergedError(UserError, RuntimeError):
    """Losses or gradients were not finite for too many steps in a row."""


class _FiniteSteps(OptimWrapper):
    """Mixin for optimiser wrappers that skips non-finite steps."""

    loss_was_finite: bool  # in the last step, on this process
    skipped: bool  # whether the last step was skipped
    bad_parameter: Tensor | None  # the first with a non-finite gradient

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.skipped, self.loss_was_finite, self.bad_parameter = False, True, None
        self._losses: list[Tensor] = []  # of the current step
        self._norm: tuple[Tensor, float] | None = None  # of the current step's gradients

    @contextmanager
    def optim_context(self, model: nn.Module) -> Iterator[None]:
        """Run the forward pass and collect its losses, which `step` checks."""
        bare = model.module if is_model_wrapper(model) else model
        if hasattr(bare, "copies_losses"):
            bare.copies_losses = True
        with super().optim_context(model):
            yield

    def backward(self, loss: Tensor, **kwargs: Any) -> None:
        """Accumulate the gradients of a loss."""
        self._losses.append(loss.detach())
        super().backward(loss, **kwargs)

    def _parameters(self) -> list[Tensor]:
        groups = self.optimizer.param_groups
        return [p for group in groups for p in group["params"] if p.grad is not None]

    def _look(self, scale: Tensor | None = None) -> tuple[bool, float | None]:
        """Check the current step with one GPU synchronisation.

        Args:
            scale: A number to read in the same synchronisation.

        Returns:
            Whether the gradient norm is finite, and the number.
        """
        grads = [p.grad for p in self._parameters() if p.grad is not None]
        norm = torch.nn.utils.get_total_norm(grads)
        where = norm.device if grads or not self._losses else self._losses[0].device
        numbers = [*self._losses, norm, *([] if scale is None else [scale])]
        told = torch.stack([number.detach().double().to(where) for number in numbers]).cpu()
        values: list[float] = told.tolist()
        count = len(self._losses)
        self.loss_was_finite = all(map(math.isfinite, values[:count]))
        self._losses = []
        self._norm = (norm, values[count])
        return math.isfinite(values[count]), None if scale is None else values[-1]

    def _find_bad_parameter(self) -> None:
        bad = (p for p in self._parameters() if p.grad is not None and not p.grad.isfinite().all())
        self.bad_parameter = next(bad, None)

    def _clip_grad(self) -> None:
        """Clip the gradients; reuse the norm computed before if it is the configured one."""
        known, self._norm = self._norm, None
        wanted = dict(self.clip_grad_kwargs or {})
        max_norm, norm_type = wanted.pop("max_norm", None), wanted.pop("norm_type", 2)
        is_norm = self.clip_func is torch.nn.utils.clip_grad_norm_
        if known is None or not is_norm or wanted or max_norm is None or float(norm_type) != 2.0:
            super()._clip_grad()
            return
        parameters = self._parameters()
        if parameters:
            torch.nn.utils.clip_grads_with_norm_(parameters, max_norm, known[0])
            self.message_hub.update_scalar(f"train/{self.grad_name}", known[1])


@OPTIM_WRAPPERS.register_module()
class FiniteOptimWrapper(_FiniteSteps):
    """MMEngine's OptimWrapper, skipping steps with a non-finite loss or gradient."""

    def step(self, **kwargs: Any) -> None:
        """Clip the gradients and update the parameters, unless the step is not finite."""
        is_finite, _ = self._look()
        self.bad_parameter = None
        if not is_finite:
            self._find_bad_parameter()
        self.skipped = any_process(not self.loss_was_finite or not is_finite)
        if not self.skipped:
            super().step(**kwargs)


@OPTIM_WRAPPERS.register_module()
class Bfloat16OptimWrapper(FiniteOptimWrapper):
    """MMEngine's AmpOptimWrapper with `dtype='bfloat16'`, without loss scaling."""

    @contextmanager
    def optim_context(self, model: nn.Module) -> Iterator[None]:
        """Run the forward pass in mixed precision."""
        device = next(model.parameters()).device.type
        with super().optim_context(model), torch.autocast(device, torch.bfloat16):
            yield


@OPTIM_WRAPPERS.register_module()
class FiniteAmpOptimWrapper(_FiniteSteps, AmpOptimWrapper):
    """MMEngine's AmpOptimWrapper that distinguishes failing steps from gradient overflow.

    The loss scaler skips steps whose scaled gradient overflows, and lowers the scale. Such a step
    counts as non-finite only if the loss is not finite, or if the scale is already below one.
    """

    def step(self, **kwargs: Any) -> None:
        """Unscale and clip the gradients, and update the parameters."""
        self.loss_scaler.unscale_(self.optimizer)
        self.skipped = self._is_beyond_scaling()
        if not self.skipped:
            if self.clip_grad_kwargs:
                self._clip_grad()
            self.loss_scaler.step(self.optimizer, **kwargs)
        self.loss_scaler.update(self._scale_update_param)

    def _is_beyond_scaling(self) -> bool:
        scale = self.loss_scaler._get_scale_async()
        is_finite, value = self._look(scale)
        self.bad_parameter = None
        if (self.loss_scaler.get_scale() if value is None else value) >= 1.0:
            return any_process(not self.loss_was_finite)
        if not is_finite:
            self._find_bad_parameter()
        return any_process(not self.loss_was_finite or not is_finite)


@HOOKS.register_module()
class FiniteStepsHook(Hook):
    """Hook that counts skipped non-finite steps and stops the training if they persist.

    Args:
        max_consecutive: Number of skipped steps in a row that stops the training.
    """

    priority = "VERY_HIGH"  # before hooks that save

    def __init__(self, max_consecutive: int = 10) -> None:
        if max_consecutive < 1:
            raise ConfigError(f"max_consecutive is {max_consecutive}: it must be at least 1")
        self.max_consecutive = max_consecutive
        self.consecutive = 0
        self.total = 0
        self._buffers: list[tuple[Tensor, Tensor]] = []

    def before_train(self, runner: Runner) -> None:
        """Allocate a copy of the model's buffers."""
        self._buffers = [(buffer, buffer.clone()) for buffer in runner.model.buffers()]

    def before_train_iter(self, runner: Runner, batch_idx: int, data_batch: Any = None) -> None:
        """Copy the buffers, because a forward pass over bad data corrupts batch-norm statistics."""
        with torch.no_grad():
            for buffer, copy in self._buffers:
                copy.copy_(buffer)

    def after_train_iter(
        self, runner: Runner, batch_idx: int, data_batch: Any = None, outputs: Any = None
    ) -> None:
        """Log a skipped step, and stop after too many."""
        if not getattr(runner.optim_wrapper, "skipped", False):
            self.consecutive = 0
            return
        with torch.no_grad():
            for buffer, copy in self._buffers:
                buffer.copy_(copy)
        self.consecutive += 1
        self.total += 1
        cause = f"{_cause(runner, outputs or {})}; samples {_bad_samples(runner, data_batch)}"
        runner.logger.warning(f"iteration {runner.iter + 1} skipped: {cause}")
        if self.consecutive >= self.max_consecutive:
            raise TrainingDivergedError(
                f"training stopped at iteration {runner.iter + 1}, the last "
                f"{self.consecutive} were not finite: {cause}; {_kept(runner)}. Lower the learning "
                "rate, or look for bad values in these samples"
            )

    def after_train_epoch(self, runner: Runner) -> None:
        """Log the number of steps skipped so far."""
        if self.total:
            runner.logger.warning(f"{self.total} iterations skipped so far: they were not finite")

    def after_train(self, runner: Runner) -> None:
        """Raise an error if the last steps of the training failed."""
        if self.consecutive:
            raise TrainingDivergedError(
                f"the last {self.consecutive} iterations of the training were not finite; "
                f"{_kept(runner)}. Lower the learning rate, or look for bad values in the data"
            )


def _kept(runner: Runner) -> str:
    path = pointed_checkpoint(runner.work_dir, [Path(runner.work_dir)])
    return "no checkpoint was written before" if path is None else f"{path} is kept"


def _cause(runner: Runner, outputs: Mapping[str, Any]) -> str:
    """Describe the losses (means over the processes) or the gradient that are not finite."""
    bad = [
        f"{name} is {float(value)}"
        for name, value in outputs.items()
        if isinstance(value, Tensor) and value.numel() == 1 and not bool(value.isfinite().all())
    ]
    parts = [entry for entry in bad if not entry.startswith("loss is ")] or bad
    parameter = getattr(runner.optim_wrapper, "bad_parameter", None)
    if parameter is not None:
        parts.append(f"the gradient of {_name_of(runner.model, parameter)} is not finite")
    if not parts:
        parts = ["the loss or the gradient norm of another process is not finite"]
    return ", ".join(parts)


def _name_of(model: nn.Module, parameter: Tensor) -> str:
    names = (name for name, value in model.named_parameters() if value is parameter)
    return next(names, "a parameter").removeprefix("module.")


def _bad_samples(runner: Runner, data_batch: Any) -> str:
    """Return the samples of processes with a non-finite loss; of all processes if there is none."""
    is_finite = getattr(runner.optim_wrapper, "loss_was_finite", True)
    processes = of_every_process((is_finite, _sample_names(data_batch)))
    bad = [names for was_finite, names in processes if not was_finite]
    listed = [name for names in bad or [names for _, names in processes] for name in names]
    more = f" and {len(listed) - NUM_NAMED_SAMPLES} more" if len(listed) > NUM_NAMED_SAMPLES else ""
    return (", ".join(listed[:NUM_NAMED_SAMPLES]) or "unknown") + more


def _sample_names(data_batch: Any) -> list[str]:
    samples: Any = data_batch.get("data_samples") if isinstance(data_batch, Mapping) else None
    if not isinstance(samples, Sequence):
        return []
    names = []
    for sample in samples:
        metainfo = getattr(sample, "metainfo", {})
        keys = ("token", "sample_token", "sample_idx")
        names.append(str(next((metainfo[key] for key in keys if key in metainfo), "?")))
    return names
