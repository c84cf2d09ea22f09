"""Channels-last tensors of several images, with any number of leading dimensions.

Convolutions and the sampling of feature maps read all channels of a pixel, so this layout makes
their reads contiguous. torch supports it only for tensors of four dimensions.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def empty_channels_last(shape: Sequence[int], like: Tensor) -> Tensor:
    """Return an uninitialised tensor `[..., C, h, w]`, channels-last.

    Args:
        shape: Shape of the result.
        like: Tensor with the dtype and device of the result.
    """
    *lead, channels, height, width = shape
    return like.new_empty((*lead, height, width, channels)).movedim(-1, -3)


def cat_channels_last(tensors: Sequence[Tensor], dim: int) -> Tensor:
    """Concatenate tensors `[..., C, h, w]` along one of the leading dimensions.

    The result is channels-last. `torch.cat` would lose this layout if there are several leading
    dimensions.
    """
    return torch.cat([x.movedim(-3, -1) for x in tensors], dim).movedim(-1, -3)


def is_channels_last(x: Tensor) -> bool:
    """Return whether `[..., C, h, w]` is dense and has adjacent channels for each pixel."""
    return x.movedim(-3, -1).is_contiguous()
