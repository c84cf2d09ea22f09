"""Points on surfaces that the image network predicts.

Dimension letters: n points, C channels.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class SeenSurfaces:
    """Points on surfaces that the image network predicts for a sample.

    Attributes:
        points: ``[n, 3]``, metres of the occ frame, without gradient.
        feats: ``[n, C]``, features of their pixels.
    """

    points: Tensor
    feats: Tensor
