"""Decisions that all processes of a run take together."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from mmengine.dist import is_distributed


def any_process(flag: bool) -> bool:
    """Whether the flag is set on any process; all of them have to ask."""
    if not is_distributed():
        return flag
    value = torch.tensor(int(flag))
    if dist.get_backend() == "nccl":
        value = value.cuda()
    dist.all_reduce(value, op=dist.ReduceOp.MAX)
    return bool(value.item())


def of_every_process(value: Any) -> list[Any]:
    """The values of all processes by rank; all of them have to give one."""
    if not is_distributed():
        return [value]
    values: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(values, value)
    return values
