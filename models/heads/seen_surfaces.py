"""Points on surfaces that the image network predicts.

Their number differs between samples. Lists have a fixed length and a mask instead, because reading
a number would synchronise with the device.

Dimension letters: B batch, n pixels of a sample, M points of every sample, C embedding channels, F
features of a point, K classes.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn


@dataclass(frozen=True)
class SeenSurfaces:
    """Predicted surfaces of a sample, one point per pixel.

    Attributes:
        points: ``[n, 3]``, metres of the occ frame, without gradient.
        feats: ``[n, C]``, features of the pixels.
        class_shares: ``[n, K + 1]``, probabilities of the classes and of no hit, without gradient.
        exists: bool ``[n]``, whether the pixel shows a surface; the other points have no meaning.
    """

    points: Tensor
    feats: Tensor
    class_shares: Tensor
    exists: Tensor

    def take(self, index: Tensor) -> SeenSurfaces:
        """Return the points of an index."""
        return SeenSurfaces(
            self.points[index], self.feats[index], self.class_shares[index], self.exists[index]
        )

    def existing_first(self, inside: Tensor) -> SeenSurfaces:
        """Return all points, the existing ones first.

        Args:
            inside: bool ``[n]``; points outside of it no longer exist.
        """
        seen = replace(self, exists=self.exists & inside)
        before, others = seen.exists.cumsum(0), (~seen.exists).cumsum(0)
        place = torch.where(seen.exists, before, before[-1:] + others) - 1
        number = torch.arange(len(place), device=place.device)
        return seen.take(torch.empty_like(place).scatter(0, place, number))


@dataclass(frozen=True)
class ExtraPoints:
    """Points that belong to no query.

    Attributes:
        points: ``[B, M, 3]``, metres of the occ frame, without gradient.
        feats: ``[B, M, F]``.
    """

    points: Tensor
    feats: Tensor


class SurfaceFeatures(nn.Module):
    """Features of points on predicted surfaces.

    They are a linear map of the pixel's normalised features plus an embedding of its class, the
    mean of the embeddings of all classes by probability.

    Args:
        in_channels: C.
        num_classes: K.
        out_channels: Channels of the result.
    """

    def __init__(self, in_channels: int, num_classes: int, out_channels: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(in_channels)
        self.of_pixel = nn.Linear(in_channels, out_channels)
        self.of_class = nn.Parameter(torch.empty(out_channels, num_classes + 1))
        nn.init.normal_(self.of_class)

    def forward(self, seen: SeenSurfaces) -> Tensor:
        """Return ``[n, out]``."""
        weight = self.of_pixel.weight
        of_pixel = self.of_pixel(self.norm(seen.feats.to(weight)))
        return of_pixel + F.linear(seen.class_shares.to(weight), self.of_class)
