"""Runner with checkpoints that are safe to read, complete, and exact to resume."""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NoReturn

import mmengine
from mmengine.dist import get_rank, is_main_process
from mmengine.model import is_model_wrapper
from mmengine.runner import Runner, save_checkpoint
from mmengine.runner.checkpoint import weights_to_cpu
from mmengine.utils import apply_to
from torch import nn

from scripts.runtime import random_state, schedules
from scripts.runtime import stop_signals as stopping
from scripts.runtime.agreement import of_every_process
from scripts.runtime.checkpoint import (
    CheckpointError,
    check_fit,
    fill_weights,
    start_from,
    weights_of,
)
from scripts.runtime.checkpoint_files import (
    INTERRUPTED_NAME,
    CheckpointWriteError,
    write_checkpoint,
    write_pointer,
)
from scripts.runtime.errors import TrainingInterrupted
from scripts.runtime.finite_steps import FiniteStepsHook, TrainingDivergedError
from scripts.runtime.loops import ResumableEpochTrainLoop, ResumableLoop
from scripts.runtime.parameter_groups import Members, one_by_one, regrouped
from scripts.runtime.place import Place
from scripts.runtime.stop_signals import StopSignals
from scripts.runtime.training_state import (
    early_stopping_state,
    first_not_finite,
    hub_state,
    memory_state,
    plain,
    restore_early_stopping,
    restore_hub,
    restore_memory,
    restore_optimizer,
    use_configured_options,
)
from scripts.runtime.weights_origin import (
    OriginKind,
    WeightsOrigin,
    checkpoint_folders,
    find_origin,
    read_on_every_process,
)


class ResumableRunner(Runner):
    """mmengine's Runner with its own checkpoint format; see `OpusRunner`.

    Attributes:
        origin: Origin of the weights; None until it is derived from the config.
        stop_signals: Stop signals received by this process.
    """

    origin: WeightsOrigin | None = None
    stop_signals: StopSignals
    _has_loaded: bool

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self.stop_signals = StopSignals()
        self._saved_at: tuple[int, int] | None = None  # epochs and iterations of `_saved_file`
        self._saved_file: str | None = None
        self._random_states: Any = None
        self._configured: list[schedules.Options] = []  # options of the optimiser's groups
        self._config_text: str | None = None  # formatting takes longer than writing a checkpoint
        super().__init__(*args, **kwargs)

    # ------------------------------------------------------------------ reading

    def load_or_resume(self) -> None:
        """Resume or start from the checkpoint that `origin` names.

        The config's `revise_keys` rename the keys of the `load_from` file.

        Raises:
            CheckpointError: The checkpoint cannot be read, does not fit, or cannot be resumed.
        """
        if self._has_loaded:
            return
        if self.origin is None:
            self.origin = find_origin(self.cfg)
        for note in self.origin.notes:
            self.logger.warning(note)
        model, path = bare_model(self), self.origin.path
        if self.origin.kind is OriginKind.RESUME:
            assert path is not None
            self._resume_from(path)
        elif self.origin.kind is OriginKind.LOAD_FROM:
            assert path is not None
            report = start_from(
                model,
                path,
                self.cfg.get("revise_keys") or (),
                drop_mismatched=self.origin.drop_mismatched,
            )
            for line in report.splitlines():
                self.logger.info(line)
        elif self.origin.kind is OriginKind.SCRATCH:
            self.logger.info("no checkpoint to start from: the weights are as initialised")
        self._has_loaded = True

    def resume(self, filename: str, *args: Any, **kwargs: Any) -> None:
        """Resume from a checkpoint, without running its config text as mmengine does."""
        self._resume_from(filename)
        self._has_loaded = True

    def _resume_from(self, path: str) -> None:
        model = bare_model(self)
        checkpoint = read_on_every_process(path)
        check_fit(weights_of(checkpoint, model), model, path)
        if "optimizer" not in checkpoint:
            raise CheckpointError(
                f"{path} holds weights only and cannot be resumed: use --load-from"
            )
        checkpoint = regrouped(checkpoint, self._group_members(), self._configured)
        place = Place.of_checkpoint(checkpoint, path)
        before = schedules.group_options(self.optim_wrapper) if self._configured else []
        self._resume = True  # tells hooks that the run resumes
        try:
            self.call_hook("after_load_checkpoint", checkpoint=checkpoint)
        except (KeyError, TypeError, AttributeError, RuntimeError) as error:
            raise CheckpointError(
                f"{path} does not fit the hooks of the config: {error}: start from its weights "
                "with --load-from"
            ) from error
        fill_weights(model, weights_of(checkpoint, model), path)
        keeps_count = self._resume_loop(place)
        folders = [Path(self.work_dir), *self.checkpoint_folders]
        restore_hub(self.message_hub, checkpoint.get("message_hub"), folders)
        restore_optimizer(self.optim_wrapper, checkpoint["optimizer"], path)
        self._resume_schedule(checkpoint, before, keeps_count)
        restore_early_stopping(self, checkpoint.get("early_stopping"))
        self._random_states = checkpoint.get("random_states")
        fault = restore_memory(model, checkpoint.get("memory"))
        if fault is not None:
            self.logger.warning(fault)
        if keeps_count and Path(path).parent in (Path(self.work_dir), *self.checkpoint_folders):
            self._saved_at, self._saved_file = (self.epoch, self.iter), path
        self.logger.info(f"resumed {path}: {self.epoch} epochs, {self.iter} iterations done")

    def _resume_loop(self, place: Place) -> bool:
        loop = self.train_loop
        if isinstance(loop, ResumableLoop):
            resumed: bool = loop.resume_at(place)  # type: ignore[attr-defined]
            return resumed
        loop._epoch, loop._iter = place.epoch, place.iteration
        return True

    def _resume_schedule(
        self, checkpoint: dict[str, Any], before: list[schedules.Options], keeps_count: bool
    ) -> None:
        """Set the optimiser's options and schedule to the place of a checkpoint."""
        if not self._configured:  # several optimisers: mmengine's procedure
            for name, built in (self.param_schedulers or {}).items():
                for scheduler, state in zip(
                    built, checkpoint.get("param_schedulers", {}).get(name, []), strict=False
                ):
                    scheduler.load_state_dict(state)
            return
        stored = checkpoint.get("schedule")
        stored = stored if isinstance(stored, Mapping) else {}
        changed = use_configured_options(
            self.optim_wrapper, self._configured, stored.get("options")
        )
        for change in changed:
            self.logger.info(f"the optimiser's options are those of the config: {change}")
        if not self.param_schedulers:
            return
        kept = schedules.restore(
            self.param_schedulers,
            checkpoint.get("param_schedulers"),
            stored.get("settings"),
            wrapper=self.optim_wrapper,
            initial=before,
            place_is_kept=keeps_count and not changed,
            # mmengine steps schedulers by epoch at the end of a training by iterations
            epoch=self.epoch if isinstance(self.train_loop, ResumableEpochTrainLoop) else 0,
            iteration=self.iter,
            epoch_length=len(self.train_dataloader),
        )
        if not kept:
            self.logger.info(
                "the learning-rate settings differ from the checkpoint's: training continues as "
                "if the run had used the new ones from its start"
            )

    def restore_random_state(self) -> None:
        """Restore the random generators' states from the resumed checkpoint."""
        states, self._random_states = self._random_states, None
        rank = get_rank()
        if not isinstance(states, (list, tuple)) or rank >= len(states):
            return
        try:
            random_state.restore(states[rank])
        except ValueError as error:
            self.logger.warning(f"random numbers start from the seed: {error}")

    # ------------------------------------------------------------------ writing

    @property
    def is_diverging(self) -> bool:
        """Whether the last iteration was skipped as non-finite."""
        hooks = (hook for hook in self.hooks if isinstance(hook, FiniteStepsHook))
        return any(hook.consecutive for hook in hooks)

    @property
    def checkpoint_folders(self) -> list[Path]:
        """Folders besides the work dir with checkpoints of this run."""
        return checkpoint_folders(self.cfg)

    def save_checkpoint(
        self,
        out_dir: str,
        filename: str,
        file_client_args: dict | None = None,
        save_optimizer: bool = True,
        save_param_scheduler: bool = True,
        meta: dict | None = None,
        by_epoch: bool = True,
        backend_args: dict | None = None,
    ) -> None:
        """Write a checkpoint atomically; all processes must call this, the first one writes.

        Args:
            out_dir: Folder.
            filename: File name.
            file_client_args: Not used; mmengine keeps it for old code.
            save_optimizer: Whether to store the optimiser's state.
            save_param_scheduler: Whether to store the state of the schedule.
            meta: `epoch` and `iter`, if they differ from the current ones, and further facts.
            by_epoch: Whether this is called at the end of an epoch, before the epoch is counted.
            backend_args: Arguments of mmengine's file backend for paths that are URLs.

        Raises:
            CheckpointWriteError: The checkpoint could not be written; raised on all processes.
            TrainingDivergedError: The weights are not finite.
        """
        meta = dict(meta or {})
        meta.setdefault("epoch", self.epoch + 1 if by_epoch else self.epoch)
        meta.setdefault("iter", self.iter if by_epoch else self.iter + 1)
        states = of_every_process(random_state.capture())
        remembered = of_every_process(memory_state(bare_model(self)))
        bad = first_not_finite(bare_model(self))
        if bad is not None:
            raise TrainingDivergedError(
                f"{bad} is not finite after {meta['iter']} iterations: no checkpoint is written, "
                "earlier ones are kept. Lower the learning rate"
            )
        error: CheckpointWriteError | None = None
        path = f"{out_dir}/{filename}" if "://" in str(out_dir) else str(Path(out_dir, filename))
        if is_main_process():
            content = self._checkpoint_content(meta, save_optimizer, save_param_scheduler)
            content["random_states"] = states
            if any(remembered):
                content["memory"] = remembered
            self.call_hook("before_save_checkpoint", checkpoint=content)
            try:
                if "://" in path:
                    save_checkpoint(content, path, backend_args=backend_args)
                else:
                    write_checkpoint(content, path)
            except CheckpointWriteError as failure:
                error = failure
        facts = of_every_process(None if error is None else (str(error), error.missing_bytes))[0]
        if facts is not None:
            raise error or CheckpointWriteError(*facts)
        if save_optimizer:
            self._saved_at, self._saved_file = (meta["epoch"], meta["iter"]), path

    def _checkpoint_content(
        self, meta: dict[str, Any], save_optimizer: bool, save_param_scheduler: bool
    ) -> dict[str, Any]:
        dataset = self.train_dataloader.dataset
        if self._config_text is None:
            self._config_text = self.cfg.pretty_text
        meta |= dict(
            cfg=self._config_text,
            seed=self.seed,
            experiment_name=self.experiment_name,
            time=time.strftime("%Y%m%d_%H%M%S", time.localtime()),
            mmengine_version=mmengine.__version__,
            dataset_meta=plain(getattr(dataset, "metainfo", {})),
        )
        content: dict[str, Any] = dict(
            meta=meta,
            state_dict=weights_to_cpu(bare_model(self).state_dict()),
            message_hub=hub_state(self.message_hub),
            early_stopping=early_stopping_state(self),
        )
        if isinstance(self.train_loop, ResumableLoop):
            content["place"] = self.train_loop.place(meta["epoch"], meta["iter"]).as_dict()
        if save_optimizer:
            content["optimizer"] = _on_cpu(self.optim_wrapper.state_dict())
        schedulers = self.param_schedulers
        if save_param_scheduler and schedulers is not None:
            if isinstance(schedulers, dict):
                content["param_schedulers"] = {
                    name: [scheduler.state_dict() for scheduler in built]
                    for name, built in schedulers.items()
                }
            else:
                content["param_schedulers"] = [plain(s.state_dict()) for s in schedulers]
        if self._configured:
            content["schedule"] = dict(
                options=plain(self._configured),
                settings=[schedules.settings(s) for s in schedulers or []],
            )
        one_by_one(content, self._group_members())
        return content

    def _group_members(self) -> Members | None:
        return getattr(self.optim_wrapper, "group_members", None)

    def ensure_checkpoint(self, epoch: int, iteration: int) -> None:
        """Write the current state to disk, unless a regular checkpoint already holds it."""
        if self._saved_at == (epoch, iteration) or self.is_diverging:
            return
        try:
            self._save_interrupted(epoch, iteration)
        except CheckpointWriteError as error:
            self.logger.error(f"{error}; the training continues")

    def refresh_checkpoint(self, epoch: int, iteration: int) -> None:
        """Rewrite the current checkpoint after its evaluation is done."""
        if self._saved_at != (epoch, iteration) or self._saved_file is None:
            return
        path = Path(self._saved_file)
        try:
            self.save_checkpoint(
                str(path.parent), path.name, meta=dict(epoch=epoch, iter=iteration), by_epoch=False
            )
        except CheckpointWriteError as error:
            self.logger.error(f"{error}; a resumed run repeats this evaluation")

    def _save_interrupted(self, epoch: int, iteration: int) -> None:
        meta = dict(epoch=epoch, iter=iteration)
        self.save_checkpoint(self.work_dir, INTERRUPTED_NAME, meta=meta, by_epoch=False)
        if is_main_process():
            write_pointer(self.work_dir, Path(self.work_dir, INTERRUPTED_NAME))

    def stop(self, epoch: int, iteration: int, *, is_saved: bool = False) -> NoReturn:
        """Save the current state and stop the training.

        Args:
            epoch: Completed epochs.
            iteration: Completed iterations.
            is_saved: Whether a checkpoint already holds the state.

        Raises:
            TrainingInterrupted: Always.
        """
        advice = "continue with the same command and --resume"
        if not is_saved and self._saved_at != (epoch, iteration):
            try:
                self._save_interrupted(epoch, iteration)
            except CheckpointWriteError as error:
                raise TrainingInterrupted(
                    f"stopped after {iteration} iterations, but {error}; the last checkpoint is "
                    f"kept: {advice}"
                ) from None
        raise TrainingInterrupted(
            f"stopped after {iteration} iterations and saved {self._saved_file}; {advice}"
        )

    def abandon(self, iteration: int) -> NoReturn:
        """Stop a distributed training in which this process waits for a sample.

        No checkpoint is saved, because the other processes have already begun the iteration.

        Args:
            iteration: Completed iterations.

        Raises:
            TrainingInterrupted: Always.
        """
        raise TrainingInterrupted(
            f"stopped after {iteration} iterations without saving: process {get_rank()} still "
            f"waited for a sample {stopping.GRACE_S:.0f} s after the signal; the last checkpoint "
            "is kept: continue with the same command and --resume"
        )


def bare_model(runner: Runner) -> nn.Module:
    """Return the runner's model without its data-parallel wrapper."""
    return runner.model.module if is_model_wrapper(runner.model) else runner.model


def _on_cpu(state: Any) -> Any:
    return apply_to(state, lambda x: hasattr(x, "cpu"), lambda x: x.cpu())
