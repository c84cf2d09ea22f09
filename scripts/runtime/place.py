"""Progress of a training, counted in samples, so that it is valid for any batch size."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from mmengine.dataset import DefaultSampler, InfiniteSampler
from mmengine.dist import get_world_size

from scripts.runtime.checkpoint import CheckpointError


@dataclass(frozen=True)
class Place:
    """Progress of a training.

    Attributes:
        epoch: Completed epochs.
        iteration: Completed iterations.
        samples: Samples of the current epoch that are done, over all processes; None if unknown.
        num_samples: Samples of an epoch.
        total_batch: Samples of an iteration over all processes.
        evaluated_at: Completed epochs (or iterations, in a training by iterations) at the last
            completed evaluation; None before the first.
        seed: Random seed of the sample order.
    """

    epoch: int
    iteration: int
    samples: int | None = None
    num_samples: int | None = None
    total_batch: int | None = None
    evaluated_at: int | None = None
    seed: int | None = None

    def as_dict(self) -> dict[str, int | None]:
        """Return plain values for a checkpoint."""
        return asdict(self)

    @classmethod
    def of_checkpoint(cls, checkpoint: Mapping[str, Any], path: str | Path) -> Place:
        """Return the place stored in a checkpoint.

        Raises:
            CheckpointError: It does not contain a valid place.
        """
        meta = checkpoint.get("meta")
        meta = meta if isinstance(meta, Mapping) else {}
        stored = checkpoint.get("place")
        stored = stored if isinstance(stored, Mapping) else {}
        values: dict[str, Any] = dict(epoch=meta.get("epoch"), iteration=meta.get("iter"))
        values["seed"] = meta.get("seed")
        values |= {name: stored[name] for name in cls.__dataclass_fields__ if name in stored}
        for name, value in values.items():
            optional = name not in ("epoch", "iteration")
            if not (type(value) is int and value >= 0) and not (optional and value is None):
                raise CheckpointError(
                    f"{path} does not contain the progress of its training ({name} is {value!r}): "
                    "start from its weights with --load-from"
                )
        return cls(**values)


class RemainingSamples:
    """Sampler that skips completed samples in its first pass.

    Its length is the length of the whole sampler.
    """

    def __init__(self, sampler: Any, indices: Iterable[int]) -> None:
        self._sampler = sampler
        self._indices: Iterable[int] | None = indices

    def __iter__(self) -> Iterator[int]:
        indices, self._indices = self._indices, None
        return iter(self._sampler) if indices is None else iter(indices)

    def __len__(self) -> int:
        return len(self._sampler)

    def __getattr__(self, name: str) -> Any:  # set_epoch and the like
        return getattr(self._sampler, name)


def remaining_indices(sampler: Any, num_done: int, step: int) -> Iterable[int] | None:
    """Return the remaining sample indices of a process in an epoch.

    Args:
        sampler: Sampler of this process, with its epoch set.
        num_done: Samples that are done, over all processes.
        step: Samples of an iteration, over all processes.

    Returns:
        The indices, as a list unless they are infinite; None if the sampler type is not supported.
    """
    if hasattr(sampler, "remaining"):
        rest: list[int] | None = sampler.remaining(num_done, step)
        return rest
    if isinstance(sampler, InfiniteSampler):
        stream = sampler._infinite_indices()
        return islice(stream, num_done + sampler.rank, None, sampler.world_size)
    if isinstance(sampler, DefaultSampler):
        return _rest_of_order(sampler, num_done, step)[sampler.rank :: sampler.world_size]
    if num_done % get_world_size():
        return None
    return list(islice(iter(sampler), num_done // get_world_size(), None))


def _rest_of_order(sampler: DefaultSampler, num_done: int, step: int) -> list[int]:
    """Return the sample order of an epoch over all processes, without the completed samples."""
    whole = copy.copy(sampler)
    whole.rank, whole.world_size = 0, 1
    whole.num_samples = whole.total_size = len(sampler.dataset)
    order = list(whole)
    if num_done >= len(order) or not sampler.round_up:
        return order[num_done:]
    if num_done % step == 0:  # the remaining iterations of an uninterrupted run
        length = sampler.total_size
    else:
        multiple = math.lcm(getattr(sampler, "multiple_of", 1), sampler.world_size)
        length = num_done + math.ceil((len(order) - num_done) / multiple) * multiple
    return (order * math.ceil(length / len(order)))[num_done:length]


def num_iterations(num_indices: int, batch_sampler: Any) -> int:
    """Return the number of batches that a batch sampler forms from `num_indices` samples."""
    size = int(batch_sampler.batch_size)
    drop_last = bool(getattr(batch_sampler, "drop_last", False))
    return num_indices // size if drop_last else math.ceil(num_indices / size)
