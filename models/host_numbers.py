"""Numbers of a device that the host reads later."""

from __future__ import annotations

import torch
from torch import Tensor


class HostNumbers:
    """Whole numbers on their way from a device to the host.

    The copy starts at once and the host does not wait for it. If the host has waited for the device
    for another reason before it reads the numbers, reading them needs no wait of its own.

    Args:
        numbers: int64 `[n]` on any device.
    """

    def __init__(self, numbers: Tensor) -> None:
        # torch copies to page-locked memory, without which CUDA would wait here
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
