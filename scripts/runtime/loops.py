"""Epoch-based training that accumulates gradients and resumes in the middle of an epoch."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import islice
from typing import Any

from mmengine.dist import all_reduce_dict, get_world_size
from mmengine.registry import LOOPS
from mmengine.runner import EpochBasedTrainLoop, Runner
from torch.utils.data import DataLoader

from scripts.runtime.accumulation import accumulated_step
from scripts.runtime.errors import ConfigError


class _SkippingSampler:
    """A sampler that leaves out its first indices in the first pass, and is itself thereafter."""

    def __init__(self, sampler: Any, num_skipped: int) -> None:
        self._sampler = sampler
        self._num_skipped = num_skipped

    def __iter__(self) -> Iterator[int]:
        num_skipped, self._num_skipped = self._num_skipped, 0
        return islice(iter(self._sampler), num_skipped, None)

    def __len__(self) -> int:
        return len(self._sampler)

    def __getattr__(self, name: str) -> Any:  # set_epoch and the like
        return getattr(self._sampler, name)


def _whole_steps(dataloader: Mapping[str, Any], accumulation: int) -> dict[str, Any]:
    """Return the configuration of a data loader whose batches are those of optimiser steps."""
    whole = dict(dataloader)
    sampler, size = whole.get("sampler"), whole.get("batch_size")
    if size is None:
        return whole
    whole["batch_size"] = size * accumulation
    if isinstance(sampler, Mapping) and sampler.get("type") == "EpochSampler":
        whole["sampler"] = dict(sampler, multiple_of=whole["batch_size"] * get_world_size())
    return whole


@LOOPS.register_module()
class ResumableEpochTrainLoop(EpochBasedTrainLoop):
    """mmengine's EpochBasedTrainLoop, which takes an interrupted epoch up where it was left.

    mmengine starts an epoch anew when a checkpoint from its middle is resumed, while the iteration
    count goes on: the run then has more steps than its schedule. Here the samples that the epoch
    has already seen are left out (they are not loaded either); shuffling depends on seed and epoch
    alone, so the rest of the epoch is the rest that an uninterrupted run would have seen.

    With `optim_wrapper.accumulative_counts` k an iteration takes the samples of k batches and is
    one step of the optimiser: iterations, epochs and schedule are those of a batch k times as
    large. (In mmengine's loop an iteration is a batch, and every k-th of them a step.)

    Args:
        runner: The runner; its optimiser is not built yet.
        dataloader: Configuration of the data loader, with the size of one batch, or a data loader.
        max_epochs: Length of the training.
        val_begin: First epoch that may be followed by an evaluation.
        val_interval: Epochs between two evaluations; None evaluates once, after the last epoch.
        dynamic_intervals: See mmengine's EpochBasedTrainLoop.

    Raises:
        ConfigError: A length, an interval or `accumulative_counts` is not a positive whole number.
    """

    _epoch: int
    _iter: int

    def __init__(
        self,
        runner: Runner,
        dataloader: DataLoader | dict,
        max_epochs: int,
        val_begin: int = 1,
        val_interval: int | None = None,
        dynamic_intervals: list[tuple[int, int]] | None = None,
    ) -> None:
        for name, value in (("max_epochs", max_epochs), ("val_interval", val_interval or 1)):
            if not isinstance(value, int) or value < 1:
                raise ConfigError(f"{name} is {value!r}: it must be a whole number of at least 1")
        self.accumulation = 1
        wrapper: Any = runner.optim_wrapper
        if isinstance(wrapper, Mapping) and isinstance(dataloader, Mapping):
            runner.optim_wrapper = wrapper = dict(wrapper)
            self.accumulation = wrapper.pop("accumulative_counts", 1)
            if not isinstance(self.accumulation, int) or self.accumulation < 1:
                raise ConfigError(
                    f"optim_wrapper.accumulative_counts is {self.accumulation!r}: it must be a "
                    "whole number, at least 1"
                )
            dataloader = _whole_steps(dataloader, self.accumulation)
        interval = max_epochs if val_interval is None else val_interval
        super().__init__(runner, dataloader, max_epochs, val_begin, interval, dynamic_intervals)

    def run_iter(self, idx: int, data_batch: Any) -> None:
        """Run one iteration: one step of the optimiser.

        What hooks get, and the log shows, is the mean of the losses over the processes.
        """
        runner = self.runner
        runner.call_hook("before_train_iter", batch_idx=idx, data_batch=data_batch)
        if self.accumulation == 1:
            outputs = runner.model.train_step(data_batch, optim_wrapper=runner.optim_wrapper)
        else:
            outputs = accumulated_step(
                runner.model, data_batch, runner.optim_wrapper, self.accumulation
            )
        outputs = {name: value.detach() for name, value in outputs.items()}
        all_reduce_dict(outputs, op="mean")
        runner.call_hook("after_train_iter", batch_idx=idx, data_batch=data_batch, outputs=outputs)
        self._iter += 1

    def run_epoch(self) -> None:
        """Run one epoch, or what a resumed checkpoint left of it."""
        num_done = self._iter - self._epoch * len(self.dataloader)
        if num_done == 0:
            super().run_epoch()
            return
        if not 0 < num_done <= len(self.dataloader):
            self.runner.logger.warning(
                f"resumed at iteration {self._iter} of epoch {self._epoch + 1}, but an epoch has "
                f"{len(self.dataloader)} iterations now: the data set or the batch size has "
                "changed; this epoch starts at its beginning"
            )
            self._iter = self._epoch * len(self.dataloader)
            super().run_epoch()
            return

        self.runner.logger.info(
            f"epoch {self._epoch + 1}: its first {num_done} iterations are done"
        )
        batches = self.dataloader.batch_sampler
        batches.sampler = _SkippingSampler(batches.sampler, num_done * batches.batch_size)
        self.runner.call_hook("before_train_epoch")
        self.runner.model.train()
        for index, data_batch in enumerate(self.dataloader, start=num_done):
            self.run_iter(index, data_batch)
        self.runner.call_hook("after_train_epoch")
        self._epoch += 1
