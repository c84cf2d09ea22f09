"""Precision of the head's matrix products."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from models.errors import ModelConfigError

PRECISIONS = ("float32", "tf32", "bfloat16")


def check_precision(precision: str) -> None:
    """Check the setting of a head.

    Raises:
        ModelConfigError: If there is no such precision.
    """
    if precision not in PRECISIONS:
        raise ModelConfigError(f"precision must be one of {PRECISIONS}, got {precision!r}.")


@contextmanager
def products_in(precision: str, device: torch.device) -> Iterator[None]:
    """Within, matrix products of single precision are computed so.

    `'float32'` leaves torch as it is. `'tf32'` lets GPUs round factors to 11 bits, in the whole
    process and from then on, since gradients are computed after this has ended; CPUs compute in
    single precision. `'bfloat16'` rounds factors to 8 bits, by torch's autocast; sums, norms and
    coordinates stay in single precision.
    """
    if precision == "tf32" and device.type == "cuda":
        torch.backends.cuda.matmul.allow_tf32 = True
    is_half = precision == "bfloat16"
    # A weight is used once in a frame, and a captured graph must not read one that was kept for the
    # length of this alone.
    with torch.autocast(device.type, torch.bfloat16, enabled=is_half, cache_enabled=False):
        yield


class ExactLinear(nn.Linear):
    """A small product that gives metres, or weights of places: in its parameters' precision."""

    def forward(self, x: Tensor) -> Tensor:
        """Run the layer without autocast."""
        with torch.autocast(x.device.type, enabled=False):
            return super().forward(x.to(self.weight.dtype))
