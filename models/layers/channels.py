"""Tensors of several images whose channels lie next to each other in memory (channels-last).

Convolutions and the sampling of feature maps read all channels of a pixel: so they lie together.
torch knows that layout for tensors of four dimensions; these have any number of leading ones.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def empty_channels_last(shape: Sequence[int], like: Tensor) -> Tensor:
    """Return an uninitialised tensor `[..., C, h, w]`, channels-last.

    Args:
        shape: Its shape.
        like: Gives dtype and device.
    """
    *lead, channels, height, width = shape
    return like.new_empty((*lead, height, width, channels)).movedim(-1, -3)


def cat_channels_last(tensors: Sequence[Tensor], dim: int) -> Tensor:
    """Concatenate tensors `[..., C, h, w]` along one of the leading dimensions.

    The result is channels-last; `torch.cat` would put the channels of more than one leading
    dimension apart.
    """
    return torch.cat([x.movedim(-3, -1) for x in tensors], dim).movedim(-1, -3)


def is_channels_last(x: Tensor) -> bool:
    """Return whether `[..., C, h, w]` is dense with all channels of a pixel side by side."""
    return x.movedim(-3, -1).is_contiguous()
