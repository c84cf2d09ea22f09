"""Consistent point sampling: image features at points that follow a query's own point set.

Dimension letters: B batch, T frames, N cameras, L pyramid levels, Q queries, R points of a query,
G groups, P sampling points of a group, C embedding channels.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from models import ops

PATTERNS = ("prototype", "scaled_offset")


class PointSampling(nn.Module):
    """Place sampling points around each query and gather image features there.

    The points lie around the centre of a query's current points, at the scale of their standard
    deviation (OPUS, arXiv 2409.09350: consistent point sampling). Two patterns exist:

    - ``'scaled_offset'`` (V1): ``centre + offset(query) * scale``; a query with a single point has
      scale 0.
    - ``'prototype'`` (V2): ``centre + prototype * scale + offset(query)`` with a learned prototype
      shared by all queries; a query with a single point has scale 1.

    Args:
        embed_dims: C.
        num_cams: N.
        num_points: P.
        num_groups: G, divides C.
        num_levels: L.
        pattern: One of the patterns above.
        pairing: ``'published'`` pairs groups and level weights in the permuted way that published
            checkpoints were trained with; ``'straight'`` gives each group its own weights.
    """

    def __init__(
        self,
        embed_dims: int,
        num_cams: int,
        num_points: int,
        num_groups: int,
        num_levels: int,
        pattern: str = "prototype",
        pairing: str = "published",
    ) -> None:
        super().__init__()
        if pattern not in PATTERNS:
            raise ValueError(f"pattern must be one of {PATTERNS}, got {pattern!r}.")
        self.num_cams = num_cams
        self.num_points = num_points
        self.num_groups = num_groups
        self.num_levels = num_levels
        self.pattern = pattern
        self.pairing = pairing
        if pattern == "prototype":
            self.sampling_prototype = nn.Embedding(num_groups * num_points, 3)
        self.sampling_offset = nn.Linear(embed_dims, num_groups * num_points * 3)
        self.scale_weights = nn.Linear(embed_dims, num_groups * num_points * num_levels)
        nn.init.zeros_(self.sampling_offset.weight)
        nn.init.uniform_(self.sampling_offset.bias, -0.5, 0.5)

    def sampling_points(self, query_feats: Tensor, points: Tensor) -> Tensor:
        """Return the sampling points ``[B, Q, G, P, 3]`` in metres.

        Args:
            query_feats: ``[B, Q, C]``.
            points: ``[B, Q, R, 3]`` current points of the queries, metres of the occ frame.
        """
        offset = self.sampling_offset(query_feats).unflatten(-1, (-1, 3))
        centre = points.mean(2, keepdim=True)
        single = points.shape[2] == 1
        if self.pattern == "prototype":
            scale = torch.ones_like(centre) if single else points.std(2, keepdim=True)
            placed = centre + self.sampling_prototype.weight * scale + offset
        else:
            scale = torch.zeros_like(centre) if single else points.std(2, keepdim=True)
            placed = centre + offset * scale
        return placed.unflatten(2, (self.num_groups, self.num_points))

    def forward(
        self,
        query_feats: Tensor,
        points: Tensor,
        mlvl_feats: Sequence[Tensor],
        occ2img: Tensor,
        img_hw: tuple[int, int],
    ) -> Tensor:
        """Return sampled features ``[B, Q, G, T*P, C/G]``, frame-major in the fourth axis.

        Args:
            query_feats: ``[B, Q, C]``.
            points: ``[B, Q, R, 3]``, metres of the occ frame.
            mlvl_feats: L maps ``[B, T*N, C, h, w]``.
            occ2img: ``[B, T*N, 4, 4]``.
            img_hw: Height and width in pixels of the images the projections refer to.
        """
        level_weights = self.scale_weights(query_feats)
        level_weights = level_weights.unflatten(
            -1, (self.num_groups, self.num_points, self.num_levels)
        ).softmax(-1)
        return ops.multi_view_sampling(
            mlvl_feats,
            self.sampling_points(query_feats, points),
            occ2img,
            level_weights,
            img_hw,
            self.num_cams,
            pairing=self.pairing,
        )
