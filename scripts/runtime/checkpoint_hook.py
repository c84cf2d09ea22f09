"""MMEngine's CheckpointHook on disks that fill up and machines that crash."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from mmengine.dist import is_main_process
from mmengine.hooks import CheckpointHook
from mmengine.registry import HOOKS
from mmengine.runner import Runner

from scripts.runtime.agreement import of_every_process
from scripts.runtime.checkpoint_files import CheckpointWriteError, write_pointer


class _DeferredRemoval:
    """A file backend that removes files when told to, not when asked to."""

    def __init__(self, backend: Any) -> None:
        self._backend = backend
        self._doomed: list[tuple[str, str]] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self._backend, name)

    def remove(self, path: str) -> None:
        self._doomed.append(("remove", path))

    def rmtree(self, path: str) -> None:
        self._doomed.append(("rmtree", path))

    def keep(self) -> None:
        """Forget what was to be removed."""
        self._doomed.clear()

    def flush(self, kept: str | None) -> None:
        """Remove it, unless the file has been written again."""
        for method, path in self._doomed:
            if kept is None or Path(path) != Path(kept):
                getattr(self._backend, method)(path)
        self.keep()


@HOOKS.register_module()
class DurableCheckpointHook(CheckpointHook):
    """MMEngine's CheckpointHook that loses no good checkpoint.

    A checkpoint is on the disk before an older one is removed. Where the disk does not hold one
    more, the oldest goes first if that makes room and another one is left; otherwise the training
    goes on, and the failure is an error only if the last checkpoint of the training is missing.
    Of the files that a resumed checkpoint lists, those that exist count.
    """

    file_backend: Any
    last_ckpt: Any

    _failure: CheckpointWriteError | None = None

    def before_train(self, runner: Runner) -> None:
        """Find the checkpoints that earlier parts of the run have kept."""
        folder = Path(self.out_dir or runner.work_dir)
        if self.out_dir is not None:
            folder = folder / Path(runner.work_dir).name
        stored = runner.message_hub.runtime_info.get("keep_ckpt_ids", [])
        names = {step: self.filename_tmpl.format(step) for step in stored if type(step) is int}
        steps = [step for step, name in names.items() if (folder / name).is_file()]
        steps = of_every_process(steps)[0]  # the first process alone may see the files
        runner.message_hub.update_info("keep_ckpt_ids", steps)
        super().before_train(runner)
        self.file_backend = _DeferredRemoval(self.file_backend)

    def after_train(self, runner: Runner) -> None:
        """Publish the last checkpoint, or report that it could not be written."""
        if self._failure is not None:
            raise CheckpointWriteError(
                f"the end of the training is not on the disk: {self._failure}, and go on with "
                "--resume"
            )
        super().after_train(runner)

    def _save_checkpoint_with_step(self, runner: Any, step: int, meta: dict[str, Any]) -> None:
        if runner.is_diverging:
            runner.logger.warning("no checkpoint: the last iterations were not finite")
            return
        self.last_ckpt = self.file_backend.join_path(self.out_dir, self.filename_tmpl.format(step))
        runner.message_hub.update_info("last_ckpt", self.last_ckpt)
        kept = [old for old in getattr(self, "keep_ckpt_ids", []) if old != step]
        new = [*kept, step][-self.max_keep_ckpts :] if self.max_keep_ckpts > 0 else []
        if self.max_keep_ckpts > 0:
            runner.message_hub.update_info("keep_ckpt_ids", new)
        try:
            self._write(runner, step, meta, kept)
            if is_main_process():
                write_pointer(runner.work_dir, self.last_ckpt)
        except CheckpointWriteError as error:
            self._failure = error
            runner.logger.error(f"{error}; the training continues")
            return
        self._failure = None
        if self.max_keep_ckpts > 0:
            self.keep_ckpt_ids.clear()
            self.keep_ckpt_ids.extend(new)
            for old in kept:
                if old not in new:
                    self._remove(old)

    def _write(self, runner: Any, step: int, meta: dict[str, Any], kept: list[int]) -> None:
        """Write a checkpoint; where space is short, remove the oldest of several for it."""

        def save() -> None:
            runner.save_checkpoint(
                self.out_dir,
                self.filename_tmpl.format(step),
                save_optimizer=self.save_optimizer,
                save_param_scheduler=self.save_param_scheduler,
                meta=dict(meta),
                by_epoch=self.by_epoch,
                **self.args,
            )

        try:
            save()
        except CheckpointWriteError as error:
            if self.max_keep_ckpts <= 0 or len(kept) < 2 or error.missing_bytes is None:
                raise
            oldest = Path(self.out_dir, self.filename_tmpl.format(kept[0]))
            makes_room = oldest.is_file() and oldest.stat().st_size >= error.missing_bytes
            if not of_every_process(makes_room)[0]:
                raise
            self._remove(kept.pop(0))
            save()

    def _remove(self, step: int) -> None:
        if is_main_process():
            path = Path(self.out_dir, self.filename_tmpl.format(step))
            path.unlink(missing_ok=True)

    def _save_best_checkpoint(self, runner: Any, metrics: Any) -> None:
        try:
            super()._save_best_checkpoint(runner, metrics)
        except CheckpointWriteError as error:
            self.file_backend.keep()
            runner.logger.error(f"{error}; the best checkpoint so far is kept")
            return
        self.file_backend.flush(getattr(self, "best_ckpt_path", None))
