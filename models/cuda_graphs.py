"""Functions of tensors that are captured as CUDA graphs, and replayed without the host's work."""

from __future__ import annotations

import warnings
from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import Protocol

import torch
from torch import Tensor

Function = Callable[..., Sequence[Tensor | None]]
Replay = Callable[[], None]

# Larger inputs are read where they lie, smaller ones are copied to where the graph reads them.
COPIED_BYTES = 16 * 2**20


class Recorder(Protocol):
    """What captures a call; CUDA's, or a test's."""

    def __call__(
        self, function: Function, inputs: Sequence[Tensor | None]
    ) -> tuple[Replay, Sequence[Tensor | None]]:
        """Capture `function(*inputs)`.

        Returns:
            What repeats the call, and where the results lie.
        """


class CudaRecorder:
    """Capture calls in one pool of memory: they are replayed one after another."""

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
    """A function of tensors whose calls are captured, and replayed when they come again.

    A call comes again where all inputs have the shapes, strides and dtypes of before, and large
    ones the addresses too: these are read in place. Where gradients are computed, or inputs do not
    lie on a GPU, the function is called as it is; so it is once a capture has failed.

    Args:
        function: Takes tensors or None, and returns a sequence of tensors or None, of the same
            shapes for the same shapes of inputs. It must not wait for the device.
        copies_results: Whether to return copies. Results that are no copies hold until the next
            call.
        most_graphs: Graphs that are kept; those used longest ago go first.
        copied_bytes: Larger inputs are read in place; None copies all.
        recorder: What captures; None for CUDA's.
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
        """Drop all graphs: parameters lie elsewhere now."""
        self._captured.clear()

    def __call__(self, *inputs: Tensor | None) -> list[Tensor | None]:
        """Return what the function returns."""
        if self._has_failed or torch.is_grad_enabled() or not self._is_on_device(inputs):
            return list(self.function(*inputs))
        key = tuple(map(self._signature, inputs))
        if key not in self._captured:
            many = self._num_captures > 2 * self.most_graphs
            if many and self._num_replays < 2 * self._num_captures:
                self._give_up("large inputs lie elsewhere in every call")
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
        # Those that are read in place are not kept alive: others of the same address will do.
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
