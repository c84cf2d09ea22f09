"""Consistent point sampling: sampling points that depend on the current points of a query.

Dimension letters: B batch, T frames, N cameras, L pyramid levels, Q queries, R points of a query,
G groups, P sampling points of a group, C embedding channels, h, w size of a map.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models import ops
from models.errors import ModelConfigError

from .precision import ExactLinear

PATTERNS = ("prototype", "scaled_offset")


@dataclass(frozen=True)
class FeatureMaps:
    """Feature maps that the decoder samples.

    Attributes:
        mlvl_feats: L image feature maps `[B, T*N, C, h, w]`; `SharedMaps` if layers share them.
        occ2img: `[B, T*N, 4, 4]`, metres of the occ frame to pixels.
        img_hw: Height and width in pixels of the images of `occ2img`.
        bev_feats: Bird's-eye-view LiDAR features `[B, C, h, w]` over the xy plane of `pc_range`,
            rows along y and columns along x; None without LiDAR.
        pc_range: `[6]`, range of `bev_feats` in metres of the occ frame.
    """

    mlvl_feats: Sequence[Tensor] | ops.SharedMaps
    occ2img: Tensor
    img_hw: tuple[int, int]
    bev_feats: Tensor | None = None
    pc_range: Tensor | None = None


class PointSampling(nn.Module):
    """Place sampling points around each query and gather image and LiDAR features there.

    The points lie around the centre of a query's current points, at the scale of their standard
    deviation (OPUS, arXiv 2409.09350: consistent point sampling). Two patterns exist:

    - `'scaled_offset'` (V1): `centre + offset(query) * scale`; a query with a single point has
      scale 0.
    - `'prototype'` (V2): `centre + prototype * scale + offset(query)` with a learned prototype
      shared by all queries; a query with a single point has scale 1.

    Args:
        embed_dims: C.
        num_cams: N.
        num_points: P.
        num_groups: G, divides C.
        num_levels: L.
        pattern: One of the patterns above.
        pairing: `'published'` pairs groups and level weights in the permuted way that published
            checkpoints were trained with; `'straight'` gives each group its own weights.
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
            raise ModelConfigError(f"pattern must be one of {PATTERNS}, got {pattern!r}.")
        self.num_cams = num_cams
        self.num_points = num_points
        self.num_groups = num_groups
        self.num_levels = num_levels
        self.pattern = pattern
        self.pairing = pairing
        if pattern == "prototype":
            self.sampling_prototype = nn.Embedding(num_groups * num_points, 3)
        self.sampling_offset = ExactLinear(embed_dims, num_groups * num_points * 3)
        self.scale_weights = ExactLinear(embed_dims, num_groups * num_points * num_levels)
        nn.init.zeros_(self.sampling_offset.weight)
        nn.init.uniform_(self.sampling_offset.bias, -0.5, 0.5)

    def sampling_points(self, query_feats: Tensor, points: Tensor) -> Tensor:
        """Return the sampling points `[B, Q, G, P, 3]` in metres.

        Args:
            query_feats: `[B, Q, C]`.
            points: `[B, Q, R, 3]` current points of the queries, metres of the occ frame.
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
        self, query_feats: Tensor, points: Tensor, maps: FeatureMaps
    ) -> tuple[Tensor, Tensor]:
        """Sample around each query.

        Returns:
            Features `[B, Q, G, S, C/G]` with S = T*P, or (T+1)*P with LiDAR: the frames with P
            points each, then the LiDAR map. And the sampling points `[B, Q, G, P, 3]` in metres of
            the occ frame.

        Args:
            query_feats: `[B, Q, C]`.
            points: `[B, Q, R, 3]`, metres of the occ frame.
            maps: Feature maps.
        """
        level_weights = self.scale_weights(query_feats)
        level_weights = level_weights.unflatten(
            -1, (self.num_groups, self.num_points, self.num_levels)
        ).softmax(-1)
        where = self.sampling_points(query_feats, points)
        sampled = ops.multi_view_sampling(
            maps.mlvl_feats,
            where,
            maps.occ2img,
            level_weights,
            maps.img_hw,
            self.num_cams,
            pairing=self.pairing,
        )
        if maps.bev_feats is None:
            return sampled, where
        assert maps.pc_range is not None
        from_above = bev_sampling(maps.bev_feats, where, maps.pc_range)
        return torch.cat([sampled, from_above], dim=3), where


def bev_sampling(bev_feats: Tensor, points: Tensor, pc_range: Tensor) -> Tensor:
    """Sample a bird's-eye-view map; each group has its own channels.

    Sampling is bilinear with `align_corners=True` and zero padding.

    Args:
        bev_feats: `[B, C, h, w]`, rows along y, columns along x.
        points: `[B, Q, G, P, 3]`, metres of the occ frame.
        pc_range: `[6]`, range of the map in metres of the occ frame.

    Returns:
        `[B, Q, G, P, C/G]`.
    """
    num_groups = points.shape[2]
    low, high = pc_range[:2], pc_range[3:5]
    grid = (points[..., :2] - low) / (high - low) * 2 - 1  # x, y in [-1, 1]
    grid = grid.transpose(1, 2).flatten(0, 1)  # [B*G, Q, P, 2]
    groups = bev_feats.unflatten(1, (num_groups, -1)).flatten(0, 1)  # [B*G, C/G, h, w]
    sampled = F.grid_sample(groups, grid, align_corners=True)  # [B*G, C/G, Q, P]
    return sampled.unflatten(0, (-1, num_groups)).permute(0, 3, 1, 4, 2)
