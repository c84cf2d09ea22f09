"""MMEngine's CheckpointHook, made robust against full disks and crashes."""

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
    """File backend that defers removals until `flush` is called."""

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
        """Discard the pending removals."""
        self._doomed.clear()

    def flush(self, kept: str | None) -> None:
        """Remove the pending files, except a file that has been written again."""
        for method, path in self._doomed:
            if kept is None or Path(path) != Path(kept):
                getattr(self._backend, method)(path)
        self.keep()


@HOOKS.register_module()
class DurableCheckpointHook(CheckpointHook):
    """MMEngine's CheckpointHook that never removes the last intact checkpoint.

    An older checkpoint is removed only after the new one has been written. If the disk has no space
    for one more, the oldest is removed first, provided that this frees enough space and another
    checkpoint remains. Otherwise training continues, and only a missing last checkpoint of the
    training is an error. Files listed in a resumed checkpoint are ignored if they no longer exist.
    """

    file_backend: Any
    last_ckpt: Any

    _failure: CheckpointWriteError | None = None

    def before_train(self, runner: Runner) -> None:
        """Find the checkpoints that earlier parts of the run kept."""
        folder = Path(self.out_dir or runner.work_dir)
        if self.out_dir is not None:
            folder = folder / Path(runner.work_dir).name
        stored = runner.message_hub.runtime_info.get("keep_ckpt_ids", [])
        names = {step: self.filename_tmpl.format(step) for step in stored if type(step) is int}
        steps = [step for step, name in names.items() if (folder / name).is_file()]
        steps = of_every_process(steps)[0]  # other processes may not see the files
        runner.message_hub.update_info("keep_ckpt_ids", steps)
        super().before_train(runner)
        self.file_backend = _DeferredRemoval(self.file_backend)

    def after_train(self, runner: Runner) -> None:
        """Publish the last checkpoint; raise an error if it could not be written."""
        if self._failure is not None:
            raise CheckpointWriteError(
                f"the last checkpoint was not written: {self._failure}, and continue with --resume"
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
        """Write a checkpoint; if space is short, remove the oldest of several first."""

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
