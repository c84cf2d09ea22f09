"""Batches on their way to the GPU while it computes."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import torch
from mmengine.structures import BaseDataElement
from torch import Tensor


def prefetched(batches: Iterable[Any], device: torch.device | None, *, ahead: bool) -> Iterator:
    """Yield batches on a device.

    On a GPU, copies run on a stream of their own, beside the kernels of the step before; a step
    waits for the copies of its own batch alone. Copies out of page-locked memory
    (`pin_memory=True`) do not hold up this process. On a CPU, batches pass as they are.

    Args:
        batches: Of a data loader.
        device: Where the model is; None passes batches as they are.
        ahead: Whether to fetch and start to copy a batch before the one in front of it is yielded.
            Without, a batch is copied when it is asked for; right where loading happens in this
            process, which draws random numbers.
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
    """Yield what `start(batch)()` returns, with the next batch started before."""
    pending: Callable[[], Any] | None = None
    for batch in batches:
        started = start(batch)
        if pending is not None:
            yield pending()
        pending = started
    if pending is not None:
        yield pending()


class _StreamCopier:
    """Copies batches to a GPU on a stream of its own."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._stream = torch.cuda.Stream(device)

    def start(self, batch: Any) -> Callable[[], Any]:
        """Start to copy a batch; the function that is returned hands it to the current stream."""
        with torch.cuda.stream(self._stream):
            moved = map_tensors(batch, lambda t: t.to(self._device, non_blocking=True))
            done = self._stream.record_event()

        def finish() -> Any:
            current = torch.cuda.current_stream(self._device)
            current.wait_event(done)
            # The memory is the side stream's: it must not be given away before this one is done.
            for tensor in tensors_of(moved):
                tensor.record_stream(current)
            return moved

        return finish


def map_tensors(value: Any, function: Callable[[Tensor], Tensor]) -> Any:
    """Return a batch with a function applied to all tensors, in data elements too.

    Args:
        value: Tensors in any nesting of mappings, sequences, named tuples and data elements.
        function: From tensor to tensor.
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
