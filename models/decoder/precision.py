"""Precision of the head's matrix products."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from models.errors import ModelConfigError

PRECISIONS = ("float32", "tf32", "bfloat16")


def check_precision(precision: str) -> None:
    """Check the setting `precision` of a head.

    Raises:
        ModelConfigError: If there is no such precision.
    """
    if precision not in PRECISIONS:
        raise ModelConfigError(f"precision must be one of {PRECISIONS}, got {precision!r}.")


@contextmanager
def products_in(precision: str, device: torch.device) -> Iterator[None]:
    """Set the precision of matrix products in single precision within this context.

    `'float32'` changes nothing. `'tf32'` lets GPUs round factors to 11 bits. It applies to the
    whole process and stays set, because gradients are computed after the context has ended; CPUs
    compute in single precision. `'bfloat16'` rounds factors to 8 bits with torch's autocast; sums,
    norms and coordinates stay in single precision.
    """
    if precision == "tf32" and device.type == "cuda":
        torch.backends.cuda.matmul.allow_tf32 = True
    is_half = precision == "bfloat16"
    # No cache: a weight is used once per frame, and a captured graph must not read a cached cast
    # that is freed at the end of this context.
    with torch.autocast(device.type, torch.bfloat16, enabled=is_half, cache_enabled=False):
        yield


class ExactLinear(nn.Linear):
    """Linear layer without autocast, for outputs in metres and for sampling weights."""

    def forward(self, x: Tensor) -> Tensor:
        """Run the layer without autocast."""
        with torch.autocast(x.device.type, enabled=False):
            return super().forward(x.to(self.weight.dtype))
