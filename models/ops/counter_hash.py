"""Counter-based random bits: hashes of positions, independent of device and order.

All steps work on 32-bit words stored in int64. Overflow affects only bits above the word.
"""

from __future__ import annotations

import torch
from torch import Tensor

WORD = 0xFFFFFFFF  # 32 bits
_GOLDEN = 0x9E3779B97F4A7C15


def mix_bits(x: Tensor) -> Tensor:
    """Apply the finaliser of MurmurHash3."""
    x = x ^ (x >> 16)
    x = multiply_words(x, 0x85EBCA6B)
    x = x ^ (x >> 13)
    x = multiply_words(x, 0xC2B2AE35)
    return x ^ (x >> 16)


def multiply_words(x: Tensor, factor: int) -> Tensor:
    """Return `x * factor` modulo 2^32."""
    return (x * factor) & WORD


def sample_seeds(seed: int | Tensor, batch: int, device: torch.device) -> Tensor:
    """Return a seed for each sample of a batch, int64 `[batch]`; the first is `seed` itself.

    Args:
        seed: Number in `[0, 2^63)`, or seeds `[batch]`, which are returned unchanged.
        batch: Number of samples.
        device: Device of the result.
    """
    if isinstance(seed, Tensor):
        return seed
    seeds = [(seed + i * _GOLDEN) % 2**63 for i in range(batch)]
    return torch.tensor(seeds, dtype=torch.int64, device=device)


def kept_by_dropout(shape: tuple[int, int], dropout_p: float, seeds: Tensor) -> Tensor:
    """Return the dropout mask of every sample's matrix: True for kept elements.

    Args:
        shape: Rows and columns.
        dropout_p: Probability that an element is dropped, in [0, 1).
        seeds: int64 `[B]`, each in `[0, 2^63)`.

    Returns:
        bool `[B, rows, columns]`, on the device of `seeds`.
    """
    seeds = seeds[:, None]
    row = torch.arange(shape[0], device=seeds.device)
    column = torch.arange(shape[1], device=seeds.device)
    row = mix_bits((row * 0x9E3779B1 + (seeds & WORD)) & WORD)
    column = mix_bits((column * 0x85EBCA77 + (seeds >> 32)) & WORD)
    return mix_bits(row[:, :, None] ^ column[:, None]) >= min(int(dropout_p * 2**32), WORD)
