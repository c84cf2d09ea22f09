"""Learning-rate schedules of resumed runs.

If the configuration is unchanged, schedulers continue from their stored state. Otherwise, the steps
up to the place of the checkpoint are replayed with the new configuration. The result is the same as
if the run had used it from the start.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import SimpleNamespace
from typing import Any

from scripts.runtime.checkpoint import CheckpointError

# State that a step changes; the rest of a scheduler follows from the configuration.
_STEPPED = ("last_step", "_global_step", "_last_value")
_MEASURED = ("best", "num_bad_epochs", "cooldown_counter")  # of ReduceOnPlateau

Options = dict[str, Any]  # of a parameter group, without its parameters


def group_options(wrapper: Any) -> list[Options]:
    """Return the options of an optimiser's parameter groups."""
    return [
        {key: value for key, value in group.items() if key != "params"}
        for group in wrapper.param_groups
    ]


def settings(scheduler: Any) -> dict[str, Any]:
    """Return the configuration of a scheduler as plain values for a checkpoint."""
    hidden = {"optimizer", "verbose", *_STEPPED, *_MEASURED}
    values = {key: value for key, value in vars(scheduler).items() if key not in hidden}
    return {"class": type(scheduler).__name__, **{k: _plain(v) for k, v in values.items()}}


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    return value if isinstance(value, (bool, int, float, str, type(None))) else repr(value)


def restore(
    schedulers: Sequence[Any],
    stored: Any,
    stored_settings: Any,
    *,
    wrapper: Any,
    initial: Sequence[Options],
    place_is_kept: bool,
    epoch: int,
    iteration: int,
    epoch_length: int,
) -> bool:
    """Set schedulers to the place of a checkpoint.

    Args:
        schedulers: Schedulers built from the configuration, before their first step.
        stored: Their states in the checkpoint.
        stored_settings: Their `settings` in the checkpoint; None for checkpoints of plain MMEngine.
        wrapper: The optimiser, with its stored state loaded.
        initial: `group_options` after the construction of the schedulers.
        place_is_kept: Whether iterations and options of the optimiser are equal to the
            checkpoint's.
        epoch: Completed epochs.
        iteration: Completed iterations.
        epoch_length: Iterations of an epoch.

    Returns:
        Whether the stored state was used.

    Raises:
        CheckpointError: The configuration has changed, and a scheduler depends on scores.
    """
    if place_is_kept and _is_unchanged(schedulers, stored, stored_settings):
        for scheduler, state in zip(schedulers, stored, strict=True):
            keys = [*_STEPPED, *(key for key in _MEASURED if hasattr(scheduler, key))]
            scheduler.load_state_dict({key: state[key] for key in keys})
        return True
    if any(getattr(scheduler, "need_val_args", False) for scheduler in schedulers):
        raise CheckpointError(
            "the schedule of the learning rate has changed and follows the scores of the "
            "evaluations: keep the settings of the checkpoint, or start from its weights with "
            "--load-from"
        )
    replay(schedulers, wrapper, initial, epoch, iteration, epoch_length)
    return False


def _is_unchanged(schedulers: Sequence[Any], stored: Any, stored_settings: Any) -> bool:
    if not isinstance(stored, (list, tuple)) or len(stored) != len(schedulers):
        return False
    for index, (scheduler, state) in enumerate(zip(schedulers, stored, strict=True)):
        if not isinstance(state, Mapping):
            return False
        now = settings(scheduler)
        if isinstance(stored_settings, (list, tuple)) and index < len(stored_settings):
            before = stored_settings[index]
        else:
            before = {key: _plain(state.get(key)) for key in now} | {"class": now["class"]}
        if before != now or not _is_state(state, len(scheduler._last_value)):
            return False
        if any(key not in state for key in _MEASURED if hasattr(scheduler, key)):
            return False
    return True


def _is_state(state: Mapping[str, Any], num_groups: int) -> bool:
    values = state.get("_last_value")
    return (
        all(isinstance(state.get(key), int) for key in ("last_step", "_global_step"))
        and isinstance(values, (list, tuple))
        and len(values) == num_groups
        and all(isinstance(value, (int, float)) for value in values)
    )


def replay(
    schedulers: Sequence[Any],
    wrapper: Any,
    initial: Sequence[Options],
    epoch: int,
    iteration: int,
    epoch_length: int,
) -> None:
    """Replay the steps of schedulers up to a place, and set the optimiser's options accordingly.

    Parameter groups with equal options are stepped only once, because MMEngine creates one group
    per parameter.
    """
    distinct: list[Options] = []
    which = []
    for options in initial:
        if options not in distinct:
            distinct.append(dict(options))
        which.append(distinct.index(options))
    first = [which.index(index) for index in range(len(distinct))]
    starts = [dict(options) for options in distinct]
    optimizer = SimpleNamespace(
        param_groups=distinct, _global_step=0, step=SimpleNamespace(_with_counter=True),
        defaults=getattr(wrapper, "defaults", {}),
    )  # fmt: skip
    bases = [scheduler.base_values for scheduler in schedulers]
    for scheduler, base in zip(schedulers, bases, strict=True):
        scheduler.optimizer = optimizer
        scheduler.base_values = [base[index] for index in first]
    by_iteration = [s for s in schedulers if not s.by_epoch]
    by_epoch = [s for s in schedulers if s.by_epoch]
    for step in range(1, iteration + 1):
        for scheduler in by_iteration:
            scheduler.step()
        if step % epoch_length == 0 and step // epoch_length <= epoch:
            for scheduler in by_epoch:
                scheduler.step()
    for scheduler, base in zip(schedulers, bases, strict=True):
        scheduler.optimizer = wrapper
        scheduler.base_values = base
        scheduler._last_value = [scheduler._last_value[index] for index in which]
    scheduled = {scheduler.param_name for scheduler in schedulers} | {
        key
        for start, end in zip(starts, distinct, strict=True)
        for key in end
        if start.get(key) != end[key]
    }
    for group, index in zip(wrapper.param_groups, which, strict=True):
        group.update({key: distinct[index][key] for key in scheduled if key in group})
