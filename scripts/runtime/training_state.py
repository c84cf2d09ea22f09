"""State of a run that a checkpoint stores besides the weights, and how it is restored.

Nothing in a checkpoint is evaluated: its configuration text is only for readers.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from mmengine.dist import get_rank, get_world_size
from mmengine.hooks import EarlyStoppingHook
from mmengine.logging import HistoryBuffer, MessageHub
from mmengine.optim import OptimWrapper
from torch import Tensor, nn

from scripts.runtime import schedules
from scripts.runtime.checkpoint import CheckpointError
from scripts.runtime.parameter_groups import IMPLEMENTATION

# Entries of the message hub that the resuming run sets itself.
_OF_THIS_RUN = frozenset(
    "cfg seed experiment_name last_ckpt loop_stage dataset_meta epoch iter max_epochs "
    "max_iters".split()
)
# Optimiser states that have the shape of their parameter.
_SHAPED = ("exp_avg", "exp_avg_sq", "max_exp_avg_sq", "momentum_buffer", "square_avg", "sum")


def plain(value: Any) -> Any:
    """Return a copy of a value that `torch.load` can read without running code.

    Objects of other types become text.
    """
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)(map(plain, value)) if type(value) in (list, tuple) else list(value)
    if isinstance(value, Tensor):
        return value.detach().cpu()
    if isinstance(value, np.ndarray) and value.dtype.kind in "fiub":
        return value
    if isinstance(value, np.generic):
        return value.item()
    return value if isinstance(value, (bool, int, float, str, type(None))) else str(value)


def hub_state(hub: MessageHub) -> dict[str, Any]:
    """Return the state of a message hub for a checkpoint."""
    state = hub.state_dict()
    info = {key: plain(value) for key, value in state["runtime_info"].items() if key != "cfg"}
    return {
        "log_scalars": dict(state["log_scalars"]),
        "runtime_info": info,
        "resumed_keys": plain(state["resumed_keys"]),
    }


def restore_hub(hub: MessageHub, state: Any, folders: list[Path]) -> None:
    """Restore the history of logged values and the scores of the best checkpoint.

    Args:
        hub: Message hub of the run.
        state: State from a checkpoint; entries that are not histories are ignored.
        folders: Folders with checkpoints of this run. The best checkpoints are looked up by file
            name, so that a copied work dir does not refer to files of the original.
    """
    state = state if isinstance(state, Mapping) else {}
    scalars = state.get("log_scalars")
    for key, buffer in scalars.items() if isinstance(scalars, Mapping) else ():
        copied = _copy_of_history(buffer)
        if isinstance(key, str) and copied is not None:
            hub.log_scalars[key] = copied
            hub._resumed_keys[key] = True
    info = state.get("runtime_info")
    for key, value in info.items() if isinstance(info, Mapping) else ():
        if not isinstance(key, str) or key in _OF_THIS_RUN:
            continue
        if key.startswith("best_ckpt"):
            name = Path(str(value)).name
            paths = [str(folder / name) for folder in folders if (folder / name).is_file()]
            value = paths[0] if paths else None
        hub.update_info(key, value)


def _copy_of_history(buffer: Any) -> HistoryBuffer | None:
    try:
        values, counts = (np.asarray(part, dtype=np.float64) for part in buffer.data)
        return HistoryBuffer(values, counts, int(buffer._max_length))
    except Exception:  # the file may hold anything, and a history is only needed for the log
        return None


def restore_optimizer(wrapper: Any, state: Any, path: str | Path) -> None:
    """Load the state of an optimiser after checking its shapes.

    Raises:
        CheckpointError: The state belongs to another optimiser or another model.
    """
    advice = "start from its weights with --load-from"
    if not isinstance(wrapper, OptimWrapper):  # several optimisers
        try:
            wrapper.load_state_dict(state)
        except (ValueError, KeyError, TypeError, AttributeError, RuntimeError) as error:
            raise CheckpointError(
                f"the optimisers of {path} do not fit: {error}: {advice}"
            ) from None
        return
    problem = _optimizer_misfit(wrapper, state)
    if problem is None:
        state = dict(state)
        base = state.pop("base_param_settings", None)
        if isinstance(base, Mapping) and wrapper.base_param_settings is not None:
            state["base_param_settings"] = {**wrapper.base_param_settings, **base}
        elif wrapper.base_param_settings is not None:
            state["base_param_settings"] = dict(wrapper.base_param_settings)
        state["param_groups"] = _implemented_as(state["param_groups"], wrapper)
        try:
            wrapper.load_state_dict(state)
        except (ValueError, KeyError, TypeError, AttributeError, RuntimeError) as error:
            problem = str(error)
    if problem is not None:
        raise CheckpointError(
            f"the optimiser of {path} does not fit the config: {problem}: {advice}"
        )


def _optimizer_misfit(wrapper: OptimWrapper, state: Any) -> str | None:
    """Describe why a stored state does not fit an optimiser; None if it fits."""
    if not isinstance(state, Mapping) or not isinstance(state.get("state"), Mapping):
        return "it contains no state"
    groups, own = state.get("param_groups"), wrapper.optimizer.param_groups
    if not isinstance(groups, (list, tuple)) or len(groups) != len(own):
        return "its number of parameter groups differs"
    for stored, group in zip(groups, own, strict=True):
        indices = stored.get("params") if isinstance(stored, Mapping) else None
        if not isinstance(indices, (list, tuple)) or len(indices) != len(group["params"]):
            return "the sizes of its parameter groups differ"
        for index, parameter in zip(indices, group["params"], strict=True):
            entry = state["state"].get(index)
            if entry is not None and not isinstance(entry, Mapping):
                return "its state is invalid"
            for name in _SHAPED:
                value = None if entry is None else entry.get(name)
                if isinstance(value, Tensor) and value.shape not in (parameter.shape, ()):
                    return f"{name} has the shape {tuple(value.shape)}, its parameter " + str(
                        tuple(parameter.shape)
                    )
    return None


def _implemented_as(groups: Any, wrapper: OptimWrapper) -> list[dict[str, Any]]:
    """Return stored groups with the run's implementation options, e.g. fused on a GPU."""
    return [
        dict(stored, **{key: group[key] for key in IMPLEMENTATION if key in group})
        for stored, group in zip(groups, wrapper.optimizer.param_groups, strict=True)
    ]


def use_configured_options(
    wrapper: Any, configured: list[schedules.Options], stored: Any
) -> list[str]:
    """Set those options of an optimiser whose configuration has changed since the checkpoint.

    Args:
        wrapper: The optimiser, with its stored state.
        configured: Configured options of its groups.
        stored: Configured options in the stored run; None for checkpoints of plain MMEngine.

    Returns:
        Descriptions of the changed options, with their values.
    """
    changed: dict[str, tuple[Any, Any]] = {}
    is_known = isinstance(stored, (list, tuple)) and len(stored) == len(configured)
    for index, (group, options) in enumerate(zip(wrapper.param_groups, configured, strict=True)):
        before = stored[index] if is_known and isinstance(stored[index], Mapping) else None
        for key, value in options.items():
            if key in IMPLEMENTATION:
                continue
            if before is None:
                old = group.get(f"initial_{key}", group.get(key))
            else:
                old = before.get(key)
            if schedules._plain(old) == schedules._plain(value):
                continue
            changed.setdefault(key, (old, value))
            group[key] = value
            if f"initial_{key}" in group:
                group[f"initial_{key}"] = value
    return [f"{key} {old} in the checkpoint, {new} now" for key, (old, new) in changed.items()]


def early_stopping_state(runner: Any) -> dict[str, Any]:
    """Return the counters of MMEngine's EarlyStoppingHook, which MMEngine does not store."""
    state: dict[str, Any] = {"stop_training": bool(getattr(runner.train_loop, "stop_training", 0))}
    for hook in runner.hooks:
        if isinstance(hook, EarlyStoppingHook):
            state |= {"wait_count": hook.wait_count, "best_score": float(hook.best_score)}
    return state


def restore_early_stopping(runner: Any, state: Any) -> None:
    """Restore the counters of MMEngine's EarlyStoppingHook from a checkpoint."""
    if not isinstance(state, Mapping):
        return
    for hook in runner.hooks:
        if isinstance(hook, EarlyStoppingHook) and type(state.get("wait_count")) is int:
            hook.wait_count = state["wait_count"]
            hook.best_score = float(state.get("best_score", hook.best_score))
            runner.train_loop.stop_training = state.get("stop_training") is True


def first_not_finite(model: nn.Module) -> str | None:
    """Return the name of the first parameter with a non-finite value; None if all are finite."""
    for name, parameter in model.named_parameters():
        if not bool(torch.isfinite(parameter).all()):
            return name
    return None


def _rememberers(model: nn.Module) -> list[Any]:
    """Return the parts of a model that keep state from one iteration to the next."""
    return [part for part in model.modules() if hasattr(part, "restore_training_state")]


def memory_state(model: nn.Module) -> list[Any]:
    """Return the state that parts of a model keep between iterations, on this process."""
    return [entry for part in _rememberers(model) for entry in part.training_state()]


def restore_memory(model: nn.Module, states: Any) -> str | None:
    """Restore the state that a model keeps between iterations.

    Args:
        model: The model.
        states: Return values of `memory_state` by rank. If the number of processes has changed,
            scenes are distributed differently, so each process loads the states of all.

    Returns:
        The reason for starting without memory; None if the memory was restored.
    """
    parts = _rememberers(model)
    if not parts or states is None:
        return None
    try:
        same = len(states) == get_world_size()
        state = states[get_rank()] if same else [entry for own in states for entry in own]
        for part in parts:
            part.restore_training_state(state)
    except (KeyError, TypeError, ValueError, AttributeError, RuntimeError) as error:
        return f"the checkpoint has no valid memory of earlier frames: {error}"
    return None
