"""GridMask augmentation.

Dimension letters: B batch, I images of a sample, C channels, H, W image size.
"""

from __future__ import annotations

import torch
from mmengine.registry import MODELS
from torch import Tensor, nn

from models.randomness import SampleDraws


@MODELS.register_module()
class GridMask(nn.Module):
    """GridMask: zeroes a regular lattice of squares in all images of a sample (arXiv 2001.04086).

    Period and position of the lattice are drawn per sample, from a CPU generator with its seed.

    Args:
        ratio: Fraction of the period, along each axis, that is kept between the squares.
        prob: Probability that a sample is masked. In eval mode no sample is masked.
    """

    def __init__(self, ratio: float = 0.5, prob: float = 0.7) -> None:
        super().__init__()
        self.ratio = ratio
        self.prob = prob

    def forward(self, images: Tensor, draws: SampleDraws | None = None) -> Tensor:
        """Return masked images.

        Args:
            images: `[B, I, C, H, W]`.
            draws: Seeds of the B samples; None takes them from torch's generator.
        """
        if not self.training:
            return images
        draws = draws or SampleDraws.fresh(len(images))
        height, width = images.shape[-2:]
        kept = torch.stack([self._mask(height, width, rng) for rng in draws.generators()])
        kept = kept.to(images.device, images.dtype, non_blocking=True)
        return images * kept[:, None, None]

    def _mask(self, height: int, width: int, generator: torch.Generator) -> Tensor:
        """Draw the mask `[H, W]` of a sample: True for pixels that are kept."""
        if torch.rand((), generator=generator) >= self.prob:
            return torch.ones(height, width, dtype=torch.bool)
        longest = max(min(height, width), 3)
        period = int(torch.randint(2, longest, (), generator=generator))
        kept = min(max(round(period * self.ratio), 1), period - 1)
        rows, columns = (
            (torch.arange(size) + torch.randint(period, (), generator=generator)) % period < kept
            for size in (height, width)
        )
        return rows[:, None] | columns[None, :]
