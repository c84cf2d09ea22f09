"""Asynchronous copies of small integer tensors to the host."""

from __future__ import annotations

import torch
from torch import Tensor


class HostNumbers:
    """Integers that are copied to the host asynchronously.

    The copy starts when this is made. `read` synchronises only if the copy has not finished, which
    it has after any later synchronisation with the device.

    Args:
        numbers: int64 `[n]` on any device.
    """

    def __init__(self, numbers: Tensor) -> None:
        # torch allocates page-locked memory for this; a copy to other memory would synchronise
        self._numbers = numbers.to("cpu", non_blocking=True)
        self._arrival: torch.cuda.Event | None = None
        if numbers.is_cuda:
            self._arrival = torch.cuda.Event()
            self._arrival.record(torch.cuda.current_stream(numbers.device))

    def read(self) -> list[int]:
        """Return the numbers."""
        self._wait()
        numbers: list[int] = self._numbers.tolist()
        return numbers

    def _wait(self) -> None:
        if self._arrival is not None:
            self._arrival.synchronize()
