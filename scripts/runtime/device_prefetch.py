"""Prefetching of batches to the GPU."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import torch
from mmengine.structures import BaseDataElement
from torch import Tensor


def prefetched(batches: Iterable[Any], device: torch.device | None, *, ahead: bool) -> Iterator:
    """Yield batches on a device.

    On a GPU, copies run on a separate stream, in parallel to the kernels of the previous step; a
    step waits only for the copies of its own batch. Copies from page-locked memory
    (`pin_memory=True`) do not block this process. On a CPU, batches are yielded unchanged.

    Args:
        batches: Batches of a data loader.
        device: Device of the model; None yields batches unchanged.
        ahead: Whether to fetch a batch and start its copy before the previous batch is yielded. Set
            False if batches are loaded in this process, because loading then draws from its random
            generators: each batch is fetched only when requested.
    """
    if device is None or device.type != "cuda":
        yield from batches
        return
    copier = _StreamCopier(device)
    if not ahead:
        for batch in batches:
            yield copier.start(batch)()
        return
    yield from _one_ahead(batches, copier.start)


def _one_ahead(batches: Iterable[Any], start: Callable[[Any], Callable[[], Any]]) -> Iterator[Any]:
    """Yield `start(batch)()` for every batch, after the next batch has been started."""
    pending: Callable[[], Any] | None = None
    for batch in batches:
        started = start(batch)
        if pending is not None:
            yield pending()
        pending = started
    if pending is not None:
        yield pending()


class _StreamCopier:
    """Copies of batches to a GPU on a separate stream."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._stream = torch.cuda.Stream(device)

    def start(self, batch: Any) -> Callable[[], Any]:
        """Start to copy a batch; return a function that waits for it and returns it."""
        with torch.cuda.stream(self._stream):
            moved = map_tensors(batch, lambda t: t.to(self._device, non_blocking=True))
            done = self._stream.record_event()

        def finish() -> Any:
            current = torch.cuda.current_stream(self._device)
            current.wait_event(done)
            # The memory belongs to the side stream: it must not be reused before the current stream
            # is done.
            for tensor in tensors_of(moved):
                tensor.record_stream(current)
            return moved

        return finish


def map_tensors(value: Any, function: Callable[[Tensor], Tensor]) -> Any:
    """Return a batch with a function applied to all tensors, including those in data elements.

    Args:
        value: Tensors in any nesting of mappings, sequences, named tuples and data elements.
        function: Maps a tensor to a tensor.
    """
    if isinstance(value, Tensor):
        return function(value)
    if isinstance(value, BaseDataElement):
        element = value.new()
        for name, entry in value.items():
            element.set_field(map_tensors(entry, function), name)
        return element
    if isinstance(value, Mapping):
        return {key: map_tensors(entry, function) for key, entry in value.items()}
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return type(value)(*(map_tensors(entry, function) for entry in value))
    if isinstance(value, Sequence) and not isinstance(value, (str, bytes)):
        return type(value)(map_tensors(entry, function) for entry in value)  # type: ignore[call-arg]
    return value


def tensors_of(value: Any) -> Iterator[Tensor]:
    """Yield all tensors of a batch; see `map_tensors`."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, (BaseDataElement, Mapping)):
        for entry in value.values():
            yield from tensors_of(entry)
    elif isinstance(value, Sequence) and not isinstance(value, (str, bytes)):
        for entry in value:
            yield from tensors_of(entry)
