"""Decisions that all processes of a run make together."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
from mmengine.dist import is_distributed


def any_process(flag: bool) -> bool:
    """Return whether the flag is set on any process; all processes must call this."""
    if not is_distributed():
        return flag
    value = torch.tensor(int(flag))
    if dist.get_backend() == "nccl":
        value = value.cuda()
    dist.all_reduce(value, op=dist.ReduceOp.MAX)
    return bool(value.item())


def of_every_process(value: Any) -> list[Any]:
    """Return the values of all processes by rank; all processes must call this."""
    if not is_distributed():
        return [value]
    values: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(values, value)
    return values


def of_first_process(make: Callable[[], Any]) -> Any:
    """Call a function on the first process and return its result on all.

    An error of the function is raised on all processes.
    """
    if not is_distributed():
        return make()
    outcome: list[Any] = [None, None]
    if dist.get_rank() == 0:
        try:
            outcome[0] = make()
        except Exception as error:
            outcome[1] = error
    dist.broadcast_object_list(outcome)
    if outcome[1] is not None:
        raise outcome[1]
    return outcome[0]
