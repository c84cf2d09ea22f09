"""GridMask augmentation.

Dimension letters: I images, C channels, H, W image size.
"""

from __future__ import annotations

import torch
from mmengine.registry import MODELS
from torch import Tensor, nn


@MODELS.register_module()
class GridMask(nn.Module):
    """Zero a regular lattice of squares in all images of a batch (arXiv 2001.04086).

    Period and position of the lattice are drawn per batch from torch's CPU generator.

    Args:
        ratio: Part of the period, along each axis, that is kept between the squares.
        prob: Probability that a batch is masked; in eval mode none is.
    """

    def __init__(self, ratio: float = 0.5, prob: float = 0.7) -> None:
        super().__init__()
        self.ratio = ratio
        self.prob = prob

    def forward(self, images: Tensor) -> Tensor:
        """Return masked images ``[I, C, H, W]``."""
        if not self.training or torch.rand(()) >= self.prob:
            return images
        height, width = images.shape[-2:]
        period = int(torch.randint(2, max(min(height, width), 3), ()))
        kept = min(max(round(period * self.ratio), 1), period - 1)
        rows, columns = (
            (torch.arange(size) + torch.randint(period, ())) % period < kept
            for size in (height, width)
        )
        mask = rows[:, None] | columns[None, :]
        return images * mask.to(images)
