"""Training loops that accumulate gradients and resume in the middle of an epoch."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from mmengine.dataset import InfiniteSampler
from mmengine.dist import all_reduce_dict, get_world_size, is_distributed
from mmengine.registry import LOOPS
from mmengine.runner import EpochBasedTrainLoop, IterBasedTrainLoop, Runner
from torch import nn
from torch.utils.data import DataLoader

from scripts.runtime import random_state
from scripts.runtime.accumulation import accumulated_step
from scripts.runtime.errors import ConfigError
from scripts.runtime.place import Place, RemainingSamples, num_iterations, remaining_indices
from scripts.runtime.stop_signals import StopRequested


def _check_lengths(**lengths: Any) -> None:
    """Check that lengths and intervals are positive whole numbers."""
    for name, value in lengths.items():
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            raise ConfigError(f"{name} is {value!r}: it must be a whole number of at least 1")


def _take_accumulation(runner: Any) -> int:
    """Remove `accumulative_counts` from the configuration of a runner's optimiser and return it.

    Raises:
        ConfigError: The value is not a positive whole number.
    """
    wrapper = runner.optim_wrapper
    if not isinstance(wrapper, Mapping):
        return 1
    runner.optim_wrapper = wrapper = dict(wrapper)
    count = wrapper.pop("accumulative_counts", 1)
    _check_lengths(**{"optim_wrapper.accumulative_counts": count})
    return int(count)


def _whole_steps(dataloader: Any, accumulation: int) -> Any:
    """Return the configuration of a data loader with one batch per optimiser step."""
    if not isinstance(dataloader, Mapping) or dataloader.get("batch_size") is None:
        return dataloader
    whole = dict(dataloader)
    whole["batch_size"] *= accumulation
    sampler = whole.get("sampler")
    if isinstance(sampler, Mapping) and sampler.get("type") in ("EpochSampler", "SceneSampler"):
        whole["sampler"] = dict(sampler, multiple_of=whole["batch_size"] * get_world_size())
    return whole


class ResumableLoop:
    """Common base of the loops by epoch and by iteration.

    If mmengine resumes a checkpoint from the middle of an epoch, it restarts the epoch, while the
    iteration count continues. This loop skips the samples that the epoch has already processed,
    without loading them. Shuffling depends only on seed and epoch. The remaining samples are
    therefore those of an uninterrupted run, even with another batch size or number of processes.

    A checkpoint is written before every evaluation. A resumed run first repeats an interrupted
    evaluation.

    With `optim_wrapper.accumulative_counts` k, an iteration processes the samples of k batches in
    one step of the optimiser. Iterations, epochs and schedule are those of a batch k times as
    large. (In mmengine's loops, an iteration is a batch, and every k-th iteration is a step.)
    """

    runner: Any
    dataloader: Any
    accumulation: int
    _epoch: int
    _iter: int

    def _run_step(self, index: int, data_batch: Any) -> None:
        """Run one iteration: one step of the optimiser.

        Hooks and the log receive the mean of the losses over the processes.
        """
        runner = self.runner
        runner.call_hook("before_train_iter", batch_idx=index, data_batch=data_batch)
        if self.accumulation == 1:
            outputs = runner.model.train_step(data_batch, optim_wrapper=runner.optim_wrapper)
        else:
            outputs = accumulated_step(
                runner.model, data_batch, runner.optim_wrapper, self.accumulation
            )
        outputs = {name: value.detach() for name, value in outputs.items()}
        all_reduce_dict(outputs, op="mean")
        runner.call_hook(
            "after_train_iter", batch_idx=index, data_batch=data_batch, outputs=outputs
        )
        self._iter += 1
        self._samples_done += self.total_batch

    def _reset_place(self) -> None:
        self._samples_done = 0
        self._evaluated_at: int | None = None
        self._evaluation_is_due = False
        self._is_endless = isinstance(self._sampler, InfiniteSampler)

    @property
    def _sampler(self) -> Any:
        """Return the data loader's sampler; None if its batch sampler has none."""
        return getattr(self.dataloader.batch_sampler, "sampler", None)

    @property
    def total_batch(self) -> int:
        """Samples of an iteration over all processes."""
        size = getattr(self.dataloader.batch_sampler, "batch_size", None)
        return int(size or self.dataloader.batch_size or 1) * get_world_size()

    def _now(self) -> int:
        """Completed epochs, or iterations if evaluations are scheduled by iteration."""
        raise NotImplementedError

    def _evaluates_now(self) -> bool:
        """Return whether an evaluation is due now."""
        loop: Any = self
        is_last = self._now() == loop._last()
        return (
            self.runner.val_loop is not None
            and self._now() >= loop.val_begin
            and (self._now() % loop.val_interval == 0 or is_last)
        )

    def place(self, epoch: int, iteration: int) -> Place:
        """Return the place of the training, for a checkpoint.

        Args:
            epoch: Completed epochs.
            iteration: Completed iterations.
        """
        num_samples, samples = len(self.dataloader.dataset), 0
        if epoch == self._epoch:
            samples = self._samples_done + (iteration - self._iter) * self.total_batch
        return Place(
            epoch,
            iteration,
            samples=samples if self._is_endless else min(samples, num_samples),
            num_samples=num_samples,
            total_batch=self.total_batch,
            evaluated_at=self._evaluated_at,
            seed=self.runner.seed,
        )

    def _resume_samples(self, place: Place) -> int | None:
        """Skip the samples that are done.

        Returns:
            Remaining iterations of the epoch; None for a whole epoch.
        """
        self._epoch, self._evaluated_at = place.epoch, place.evaluated_at
        samples = self._samples_of(place)
        self._samples_done = samples
        if not samples:
            return None
        sampler = self._sampler
        if hasattr(sampler, "set_epoch"):
            sampler.set_epoch(place.epoch)
        indices = None
        if sampler is not None:
            indices = remaining_indices(sampler, samples, self.total_batch)
        if indices is None:
            self._restart_epoch("its sampler cannot skip samples")
            self._samples_done = 0
            return None
        if not isinstance(indices, list):  # infinite
            self.dataloader.batch_sampler.sampler = RemainingSamples(sampler, indices)
            self.runner.logger.info(f"{samples} samples are done")
            return None
        rest = num_iterations(len(indices), self.dataloader.batch_sampler)
        if rest:
            self.dataloader.batch_sampler.sampler = RemainingSamples(sampler, indices)
        self.runner.logger.info(
            f"epoch {place.epoch + 1}: {samples} of its {len(self.dataloader.dataset)} samples "
            f"are done, {rest} iterations remain"
        )
        return rest

    def _samples_of(self, place: Place) -> int:
        """Return the number of samples of the epoch to skip."""
        length = len(self.dataloader)
        if place.samples is None:  # a checkpoint of plain MMEngine
            samples = (place.iteration - place.epoch * length) * self.total_batch
            fits = self._is_endless or 0 <= samples <= length * self.total_batch
        else:
            samples = place.samples
            fits = samples == 0 or place.num_samples == len(self.dataloader.dataset)
            if samples and getattr(self._sampler, "depends_on_batch", False):
                fits = fits and place.total_batch == self.total_batch
            if samples and place.seed is not None and place.seed != self.runner.seed:
                self._restart_epoch(f"its order was drawn with the seed {place.seed}")
                return 0
        if not fits:
            self._restart_epoch("the data set or the batch size has changed")
            return 0
        return samples if self._is_endless else min(samples, len(self.dataloader.dataset))

    def _restart_epoch(self, reason: str) -> None:
        self.runner.logger.warning(
            f"the checkpoint is from the middle of epoch {self._epoch + 1}: {reason}, so the "
            "epoch starts from its beginning"
        )

    def _note_due_evaluation(self, place: Place) -> None:
        loop: Any = self
        loop._decide_current_val_interval()
        is_counted = place.samples is not None and place.evaluated_at != self._now()
        self._evaluation_is_due = is_counted and self._now() > 0 and self._evaluates_now()

    def _batches(self) -> Iterator[Any]:
        """Yield batches; save and stop if a signal arrives while waiting for one."""
        batches = iter(self.dataloader)
        while True:
            before = random_state.capture()  # loading in this process draws random numbers
            try:
                batch = next(batches)
            except StopIteration:
                return
            except StopRequested:
                if is_distributed():  # the others have started this iteration
                    self.runner.abandon(self._iter)
                random_state.restore(before)
                self.runner.stop(self._epoch, self._iter)
            yield batch

    def _evaluate(self) -> None:
        self._evaluation_is_due = False
        self.runner.ensure_checkpoint(self._epoch, self._iter)
        try:
            with self.runner.stop_signals.may_interrupt():
                self.runner.val_loop.run()
        except StopRequested:
            self.runner.stop(self._epoch, self._iter, is_saved=True)
        self._evaluated_at = self._now()
        self.runner.refresh_checkpoint(self._epoch, self._iter)


@LOOPS.register_module()
class ResumableEpochTrainLoop(ResumableLoop, EpochBasedTrainLoop):
    """mmengine's EpochBasedTrainLoop that continues an interrupted epoch in the middle.

    With another total batch size, the iteration count is set as if the whole run had used it. See
    `ResumableLoop`.

    Args:
        runner: The runner, before its optimiser is built.
        dataloader: A data loader, or its configuration with the size of one batch.
        max_epochs: Length of the training.
        val_begin: First epoch that may be followed by an evaluation.
        val_interval: Epochs between two evaluations; None evaluates once, after the last epoch.
        dynamic_intervals: See mmengine's EpochBasedTrainLoop.

    Raises:
        ConfigError: A length, an interval or `accumulative_counts` is not a positive whole number.
    """

    def __init__(
        self,
        runner: Runner,
        dataloader: DataLoader | dict,
        max_epochs: int,
        val_begin: int = 1,
        val_interval: int | None = None,
        dynamic_intervals: list[tuple[int, int]] | None = None,
    ) -> None:
        interval = max_epochs if val_interval is None else val_interval
        _check_lengths(max_epochs=max_epochs, val_interval=interval)
        self.accumulation = _take_accumulation(runner)
        loader = _whole_steps(dataloader, self.accumulation)
        super().__init__(runner, loader, max_epochs, val_begin, interval, dynamic_intervals)
        self._reset_place()

    def _now(self) -> int:
        return self._epoch

    def _last(self) -> int:
        return int(self._max_epochs)

    def resume_at(self, place: Place) -> bool:
        """Continue from the place of a checkpoint.

        Returns:
            Whether the iteration count is equal to the checkpoint's.
        """
        rest = self._resume_samples(place)
        length = len(self.dataloader)
        self._iter = place.epoch * length + (0 if rest is None else length - rest)
        if not self._samples_done:
            self._note_due_evaluation(place)
        return self._iter == place.iteration

    def run(self) -> nn.Module:
        """Train, and evaluate at the configured intervals."""
        self.runner.call_hook("before_train")
        self.runner.restore_random_state()
        if self._evaluation_is_due:
            self._evaluate()
        while self._epoch < self._max_epochs and not self.stop_training:
            self.run_epoch()
            self._decide_current_val_interval()
            if self._evaluates_now():
                self._evaluate()
        self.runner.call_hook("after_train")
        return self.runner.model

    def run_epoch(self) -> None:
        """Run one epoch, or the rest of a resumed one."""
        self.runner.call_hook("before_train_epoch")
        self.runner.model.train()
        first = self._iter - self._epoch * len(self.dataloader)
        if first < len(self.dataloader):
            for index, data_batch in enumerate(self._batches(), start=first):
                self._run_step(index, data_batch)
        self.runner.call_hook("after_train_epoch")
        self._epoch += 1
        self._samples_done = 0


@LOOPS.register_module()
class ResumableIterTrainLoop(ResumableLoop, IterBasedTrainLoop):
    """mmengine's IterBasedTrainLoop that continues at the next sample after resuming.

    Its epochs are passes over the data set. mmengine's loop loads all processed samples again. See
    `ResumableLoop`.

    Args:
        runner: The runner, before its optimiser is built.
        dataloader: A data loader, or its configuration with the size of one batch.
        max_iters: Length of the training.
        val_begin: First iteration that may be followed by an evaluation.
        val_interval: Iterations between two evaluations; None evaluates once, after the last.
        dynamic_intervals: See mmengine's IterBasedTrainLoop.

    Raises:
        ConfigError: A length, an interval or `accumulative_counts` is not a positive whole number.
    """

    def __init__(
        self,
        runner: Runner,
        dataloader: DataLoader | dict,
        max_iters: int,
        val_begin: int = 1,
        val_interval: int | None = 1000,
        dynamic_intervals: list[tuple[int, int]] | None = None,
    ) -> None:
        interval = max_iters if val_interval is None else val_interval
        _check_lengths(max_iters=max_iters, val_interval=interval)
        self.accumulation = _take_accumulation(runner)
        loader = _whole_steps(dataloader, self.accumulation)
        super().__init__(runner, loader, max_iters, val_begin, interval, dynamic_intervals)
        self._reset_place()

    def _now(self) -> int:
        return self._iter

    def _last(self) -> int:
        return int(self._max_iters)

    def resume_at(self, place: Place) -> bool:
        """Continue from the place of a checkpoint; its iteration count is always kept."""
        if self._resume_samples(place) == 0:
            self._epoch, self._samples_done = self._epoch + 1, 0
        self._iter = place.iteration
        self._note_due_evaluation(place)
        return True

    def run(self) -> nn.Module:
        """Train, and evaluate at the configured intervals."""
        self.runner.call_hook("before_train")
        self.runner.call_hook("before_train_epoch")
        self.runner.restore_random_state()
        if self._evaluation_is_due:
            self._evaluate()
        batches = self._passes()
        while self._iter < self._max_iters and not self.stop_training:
            self.runner.model.train()
            self._run_step(self._iter, next(batches))
            self._decide_current_val_interval()
            if self._evaluates_now():
                self._evaluate()
        self.runner.call_hook("after_train_epoch")
        self.runner.call_hook("after_train")
        return self.runner.model

    def _passes(self) -> Iterator[Any]:
        """Yield batches endlessly."""
        while True:
            if hasattr(self._sampler, "set_epoch"):
                self._sampler.set_epoch(self._epoch)
            yield from self._batches()
            self._epoch += 1
            self._samples_done = 0
