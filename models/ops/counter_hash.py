"""Random bits as a hash of where they are used: the same on every device, in any order.

Every step is on 32-bit words held in int64, whose wrap-around loses only higher bits.
"""

from __future__ import annotations

import torch
from torch import Tensor

WORD = 0xFFFFFFFF  # 32 bits


def mix_bits(x: Tensor) -> Tensor:
    """Finaliser of MurmurHash3."""
    x = x ^ (x >> 16)
    x = multiply_words(x, 0x85EBCA6B)
    x = x ^ (x >> 13)
    x = multiply_words(x, 0xC2B2AE35)
    return x ^ (x >> 16)


def multiply_words(x: Tensor, factor: int) -> Tensor:
    """Return ``x * factor`` modulo 2^32."""
    return (x * factor) & WORD


def kept_by_dropout(
    shape: tuple[int, int], dropout_p: float, seed: int, device: torch.device
) -> Tensor:
    """Return which elements of a matrix dropout keeps.

    Args:
        shape: Rows and columns.
        dropout_p: Probability that an element is dropped, in [0, 1).
        seed: Of 64 bits.
        device: Where the result lies.

    Returns:
        bool ``[rows, columns]``.
    """
    row = torch.arange(shape[0], device=device) & WORD
    column = torch.arange(shape[1], device=device) & WORD
    row = mix_bits((row * 0x9E3779B1 + (seed & WORD)) & WORD)
    column = mix_bits((column * 0x85EBCA77 + (seed >> 32 & WORD)) & WORD)
    return mix_bits(row[:, None] ^ column) >= min(int(dropout_p * 2**32), WORD)
