"""Capture and replay of functions of tensors as CUDA graphs."""

from __future__ import annotations

import warnings
from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import Protocol

import torch
from torch import Tensor

Function = Callable[..., Sequence[Tensor | None]]
Replay = Callable[[], None]

# Larger inputs are read in place, smaller ones are copied into the buffers of the graph.
COPIED_BYTES = 16 * 2**20


class Recorder(Protocol):
    """Interface of the part that captures a call, so that tests can replace CUDA's."""

    def __call__(
        self, function: Function, inputs: Sequence[Tensor | None]
    ) -> tuple[Replay, Sequence[Tensor | None]]:
        """Capture `function(*inputs)`.

        Returns:
            A function that repeats the call, and the tensors that hold its results.
        """


class CudaRecorder:
    """Capture calls in one memory pool, which is safe because they are replayed in turn."""

    def __init__(self) -> None:
        self._pool = torch.cuda.graph_pool_handle()

    def __call__(
        self, function: Function, inputs: Sequence[Tensor | None]
    ) -> tuple[Replay, Sequence[Tensor | None]]:
        """See `Recorder`."""
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):  # libraries allocate at their first call
            for _ in range(2):
                function(*inputs)
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=self._pool):
            outputs = function(*inputs)
        return graph.replay, outputs


class CapturedFunction:
    """Function of tensors whose calls are captured once and then replayed.

    A captured call is replayed if all inputs have the same shapes, strides and dtypes, and large
    inputs the same addresses, because they are read in place. The function runs uncaptured if
    gradients are computed, if inputs are not on a GPU, or after a capture has failed.

    Args:
        function: Takes tensors or None, and returns a sequence of tensors or None. Equal input
            shapes must give equal output shapes. It must not synchronise with the device.
        copies_results: Whether to return copies. Without copies, results are valid until the next
            call.
        most_graphs: Largest number of graphs; the least recently used one is dropped first.
        copied_bytes: Inputs larger than this are read in place; None copies all.
        recorder: Captures the calls; None for CUDA's.
    """

    def __init__(
        self,
        function: Function,
        copies_results: bool = True,
        most_graphs: int = 32,
        copied_bytes: int | None = COPIED_BYTES,
        recorder: Recorder | None = None,
    ) -> None:
        self.function = function
        self.copies_results = copies_results
        self.most_graphs = most_graphs
        self.copied_bytes = copied_bytes
        self._recorder = recorder
        self._captured: OrderedDict[
            tuple, tuple[list[Tensor | None], Replay, Sequence[Tensor | None]]
        ] = OrderedDict()
        self._has_failed = False
        self._num_captures = self._num_replays = 0

    def forget(self) -> None:
        """Drop all graphs, for example after parameters have moved."""
        self._captured.clear()

    def __call__(self, *inputs: Tensor | None) -> list[Tensor | None]:
        """Call the function, or replay the call."""
        if self._has_failed or torch.is_grad_enabled() or not self._is_on_device(inputs):
            return list(self.function(*inputs))
        key = tuple(map(self._signature, inputs))
        if key not in self._captured:
            many = self._num_captures > 2 * self.most_graphs
            if many and self._num_replays < 2 * self._num_captures:
                self._give_up("large inputs have another address in every call")
                return list(self.function(*inputs))
            self._num_captures += 1
            try:
                self._captured[key] = self._capture(inputs)
            except RuntimeError as error:
                self._give_up(str(error))
                return list(self.function(*inputs))
            if len(self._captured) > self.most_graphs:
                self._captured.popitem(last=False)
        self._captured.move_to_end(key)
        static, replay, outputs = self._captured[key]
        for own, given in zip(static, inputs, strict=True):
            if (
                own is not None
                and given is not None
                and own is not given
                and self._is_copied(given)
            ):
                own.copy_(given)
        replay()
        self._num_replays += 1
        if not self.copies_results:
            return list(outputs)
        return [None if output is None else output.clone() for output in outputs]

    def _give_up(self, reason: str) -> None:
        self._has_failed = True
        self._captured.clear()
        warnings.warn(f"no CUDA graphs: {reason}; the model runs without", stacklevel=3)

    def _is_on_device(self, inputs: Sequence[Tensor | None]) -> bool:
        given = [x for x in inputs if x is not None]
        return self._recorder is not None or (bool(given) and all(x.is_cuda for x in given))

    def _capture(
        self, inputs: Sequence[Tensor | None]
    ) -> tuple[list[Tensor | None], Replay, Sequence[Tensor | None]]:
        if self._recorder is None:
            self._recorder = CudaRecorder()
        # Inputs that are read in place are not kept alive: only their address matters.
        static = [x.clone() if x is not None and self._is_copied(x) else x for x in inputs]
        replay, outputs = self._recorder(self.function, static)
        kept = [x if x is None or self._is_copied(x) else x.new_empty(0) for x in static]
        return kept, replay, outputs

    def _is_copied(self, x: Tensor) -> bool:
        return self.copied_bytes is None or x.numel() * x.element_size() <= self.copied_bytes

    def _signature(self, x: Tensor | None) -> tuple:
        if x is None:
            return ()
        place = None if self._is_copied(x) else x.data_ptr()
        return tuple(x.shape), x.stride(), x.dtype, x.device, place
