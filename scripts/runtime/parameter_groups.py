"""Merging of parameters with equal settings into one group; checkpoints have a group per parameter.

MMEngine creates a group for every parameter if `paramwise_cfg` is set, and an optimiser processes
groups one after another: hundreds of kernel launches per step on a GPU. Checkpoints still list
parameters one by one. A run can therefore be resumed with any grouping of its parameters, and
changed rules are detected for each parameter.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from mmengine.optim import DefaultOptimWrapperConstructor, OptimWrapper
from mmengine.registry import OPTIM_WRAPPER_CONSTRUCTORS
from torch import nn

CONSTRUCTOR = "MergedGroupsConstructor"
# How a step is computed, not its result: never taken from a checkpoint.
IMPLEMENTATION = frozenset({"fused", "foreach", "capturable", "differentiable"})
_FUSED = frozenset({"Adam", "AdamW"})
_FUSED_DEVICES = frozenset({"cpu", "cuda"})
# Lists of schedulers with one entry per group.
_PER_GROUP = ("_last_value", "base_values")

Members = list[list[int]]  # per group, the indices of its parameters in the model's order


@OPTIM_WRAPPER_CONSTRUCTORS.register_module()
class MergedGroupsConstructor(DefaultOptimWrapperConstructor):
    """MMEngine's optimiser constructor, merging parameters with equal settings into one group.

    On CPUs and on GPUs, Adam and AdamW are fused unless the config sets `fused` or `foreach`. The
    wrapper's `group_members` lists the parameters of each group.
    """

    optimizer_cfg: dict[str, Any]

    def __call__(self, model: nn.Module) -> OptimWrapper:
        """Build the optimiser of a model and its wrapper."""
        parameters = [p for p in model.parameters() if p.requires_grad]
        chosen = self.optimizer_cfg.keys() & {"fused", "foreach"}
        can_fuse = bool(parameters) and all(
            p.device.type in _FUSED_DEVICES and p.is_floating_point() for p in parameters
        )
        if self.optimizer_cfg.get("type") in _FUSED and can_fuse and not chosen:
            self.optimizer_cfg = dict(self.optimizer_cfg, fused=True)
        wrapper = super().__call__(model)
        if self.paramwise_cfg and isinstance(wrapper, OptimWrapper):
            optimizer = wrapper.optimizer
            optimizer.param_groups, wrapper.group_members = merged(optimizer.param_groups)
        return wrapper


def merged(groups: Sequence[Mapping[str, Any]]) -> tuple[list[dict[str, Any]], Members]:
    """Merge groups with equal settings, in the order in which settings first appear.

    Args:
        groups: Groups of an optimiser, with one parameter each.

    Returns:
        The merged groups, and for each the indices of its original groups.
    """
    result: list[dict[str, Any]] = []
    members: Members = []
    for number, group in enumerate(groups):
        settings = {key: value for key, value in group.items() if key != "params"}
        for known, numbers in zip(result, members, strict=True):
            if {key: value for key, value in known.items() if key != "params"} == settings:
                known["params"].extend(group["params"])
                numbers.append(number)
                break
        else:
            result.append(dict(settings, params=list(group["params"])))
            members.append([number])
    return result, members


def one_by_one(content: dict[str, Any], members: Members | None) -> None:
    """List the parameters of a checkpoint one by one, in the model's order.

    Args:
        content: Content of the checkpoint with merged groups, changed in place.
        members: See `MergedGroupsConstructor`; None leaves the checkpoint unchanged.
    """
    if members is None:
        return
    optimizer = content.get("optimizer")
    if optimizer is not None:
        number = sum(map(len, members))
        groups: list[dict[str, Any]] = [{}] * number
        state = {}
        for group, numbers in zip(optimizer["param_groups"], members, strict=True):
            for own, index in zip(numbers, group["params"], strict=True):
                groups[own] = dict(group, params=[own])
                if index in optimizer["state"]:
                    state[own] = optimizer["state"][index]
        state = dict(sorted(state.items()))
        content["optimizer"] = dict(optimizer, state=state, param_groups=groups)
    _map_lists(content, len(members), lambda values: _expanded(values, members))


def regrouped(
    checkpoint: Mapping[str, Any], members: Members | None, configured: Sequence[Mapping[str, Any]]
) -> dict[str, Any]:
    """Return a checkpoint with its parameters in the groups of the config.

    Args:
        checkpoint: Checkpoint of any run; it is unchanged if it does not list parameters one by
            one.
        members: See `MergedGroupsConstructor`; None leaves the checkpoint unchanged.
        configured: Configured options of the groups. If the options of a parameter have changed
            since the checkpoint, its group takes that parameter's stored options.
    """
    result = dict(checkpoint)
    optimizer = checkpoint.get("optimizer")
    groups = optimizer.get("param_groups") if isinstance(optimizer, Mapping) else None
    number = sum(map(len, members or []))
    if members is None or not _lists_parameters(groups, number):
        return result
    assert isinstance(groups, (list, tuple)) and isinstance(optimizer, Mapping)
    stored = checkpoint.get("schedule")
    options = stored.get("options") if isinstance(stored, Mapping) else None
    if not isinstance(options, (list, tuple)) or len(options) < number:
        options = groups
    chosen = [
        next((i for i in numbers if _has_changed(options[i], wanted)), numbers[0])
        for numbers, wanted in zip(members, configured, strict=False)
    ]
    new_groups = [
        dict(groups[first], params=[groups[i]["params"][0] for i in numbers])
        for first, numbers in zip(chosen, members, strict=True)
    ]
    result["optimizer"] = dict(optimizer, param_groups=new_groups)
    _map_lists(result, number, lambda values: [values[i] for i in chosen])
    return result


def _lists_parameters(groups: Any, number: int) -> bool:
    return (
        isinstance(groups, (list, tuple))
        and len(groups) == number
        and all(
            isinstance(group, Mapping)
            and isinstance(group.get("params"), (list, tuple))
            and len(group["params"]) == 1
            for group in groups
        )
    )


def _has_changed(stored: Any, configured: Mapping[str, Any]) -> bool:
    if not isinstance(stored, Mapping):
        return False
    for key, value in configured.items():
        if key in IMPLEMENTATION or key in ("params", "initial_lr"):
            continue
        before = stored.get(f"initial_{key}", stored.get(key))
        same_kind = isinstance(before, (list, tuple)) and isinstance(value, (list, tuple))
        if (list(before) != list(value)) if same_kind else before != value:
            return True
    return False


def _expanded(values: Sequence[Any], members: Members) -> list[Any]:
    result: list[Any] = [None] * sum(map(len, members))
    for value, numbers in zip(values, members, strict=True):
        for number in numbers:
            result[number] = value
    return result


def _map_lists(content: dict[str, Any], length: int, change: Any) -> None:
    """Change all lists of schedulers and options with one entry per group, in place.

    An additional last entry, MMEngine's base settings, is kept.
    """

    def changed(values: Any) -> Any:
        if not isinstance(values, (list, tuple)) or len(values) not in (length, length + 1):
            return values
        return [*change(list(values[:length])), *values[length:]]

    def of_scheduler(state: Any) -> Any:
        if not isinstance(state, Mapping):
            return state
        return {key: changed(value) if key in _PER_GROUP else value for key, value in state.items()}

    schedulers = content.get("param_schedulers")
    if isinstance(schedulers, (list, tuple)):
        content["param_schedulers"] = [of_scheduler(state) for state in schedulers]
    schedule = content.get("schedule")
    if isinstance(schedule, Mapping):
        schedule = dict(schedule)
        if "options" in schedule:
            schedule["options"] = changed(schedule["options"])
        if isinstance(schedule.get("settings"), (list, tuple)):
            schedule["settings"] = [of_scheduler(state) for state in schedule["settings"]]
        content["schedule"] = schedule
