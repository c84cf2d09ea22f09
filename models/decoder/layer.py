"""One layer of the decoder.

Dimension letters: B batch, T frames, N cameras, L pyramid levels, Q queries, G groups, P sampling
points of a group, C embedding channels, R_in / R_out points of a query before / after the layer,
F features of a point.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor, nn

from models import randomness
from models.errors import ModelConfigError

from .attention import ScaleAdaptiveSelfAttention
from .mixing import AdaptiveMixing
from .precision import ExactLinear
from .sampling import FeatureMaps, PointSampling

POSITION_CODES = ("added", "where_used")


class FeedForward(nn.Module):
    """Two linear layers with a residual connection; parameters named as in mmcv's FFN.

    Args:
        embed_dims: Channels of input and output.
        hidden_dims: Channels between the layers.
        dropout: Dropout after each of the layers.
    """

    def __init__(self, embed_dims: int, hidden_dims: int, dropout: float) -> None:
        super().__init__()
        self.dropout = dropout
        hidden = nn.Sequential(nn.Linear(embed_dims, hidden_dims), nn.ReLU())
        self.layers = nn.Sequential(hidden, nn.Linear(hidden_dims, embed_dims))

    def forward(self, x: Tensor, seeds: Tensor | None = None) -> Tensor:
        """Return ``x`` ``[B, Q, C]`` plus the output of the network.

        Args:
            x: ``[B, Q, C]``.
            seeds: int64 ``[2, B]``, of the dropout after each layer; None for no dropout.
        """
        out = x
        for i, layer in enumerate(self.layers):
            own = None if seeds is None else seeds[i]
            out = randomness.dropout(layer(out), self.dropout, own)
        return x + out


class LayerOutput(NamedTuple):
    """Outputs of a layer.

    Attributes:
        query_feats: ``[B, Q, C]``.
        points_m: ``[B, Q, R_out, 3]``, new points in metres of the occ frame.
        point_feats: ``[B, Q, R_out, F]``, output of the class branch, or None.
        sampling_points: ``[B, Q, G, P, 3]``, where features were sampled, in metres of the occ
            frame, without gradient.
    """

    query_feats: Tensor
    points_m: Tensor
    point_feats: Tensor | None
    sampling_points: Tensor


class DecoderLayer(nn.Module):
    """Refine queries and their points once (OPUS, arXiv 2409.09350).

    Args:
        embed_dims: C.
        in_points: R_in.
        out_points: R_out.
        point_channels: F, outputs of the class branch for a point: class logits or features.
        num_frames: T.
        num_cams: N.
        num_levels: L.
        num_groups: G.
        num_points: P.
        mixed_points: Features of a group after mixing; None for the number before mixing.
        num_heads: Heads of the self-attention.
        ffn_dims: Hidden channels of the feed-forward network.
        dropout: Dropout in self-attention and feed-forward network.
        refine_scale_m: Metres per unit of the output of the regression branch.
        prior_probability: Initial probability of sigmoid logits in the class branch; None for
            torch's initialisation.
        sampling_pattern: See ``PointSampling``.
        level_pairing: See ``PointSampling``.
        use_lidar: Whether a LiDAR map is sampled in addition to the images.
        position_code: ``'added'``: the code of a query's points stays in its features, as
            published. ``'where_used'``: only offsets, level weights, mixing and attention use it.
    """

    def __init__(
        self,
        embed_dims: int,
        in_points: int,
        out_points: int,
        point_channels: int,
        num_frames: int,
        num_cams: int,
        num_levels: int,
        num_groups: int,
        num_points: int,
        mixed_points: int | None,
        num_heads: int,
        ffn_dims: int,
        dropout: float,
        refine_scale_m: float,
        prior_probability: float | None,
        sampling_pattern: str,
        level_pairing: str,
        use_lidar: bool,
        position_code: str = "added",
    ) -> None:
        super().__init__()
        if position_code not in POSITION_CODES:
            raise ModelConfigError(
                f"position_code is '{position_code}': use one of {POSITION_CODES}."
            )
        self.keeps_code = position_code == "added"
        self.out_points = out_points
        self.refine_scale_m = refine_scale_m
        self.position_encoder = nn.Sequential(*_linear_norm_relu(in_points * 3, embed_dims, 2))
        self.self_attn = ScaleAdaptiveSelfAttention(embed_dims, num_heads, dropout)
        self.sampling = PointSampling(
            embed_dims,
            num_cams,
            num_points,
            num_groups,
            num_levels,
            sampling_pattern,
            level_pairing,
        )
        sampled_points = (num_frames + use_lidar) * num_points
        mixing = AdaptiveMixing(
            embed_dims, num_groups, sampled_points, mixed_points or sampled_points
        )
        self.mixing_name = "img_pts_mixing" if use_lidar else "mixing"  # as in checkpoints
        self.add_module(self.mixing_name, mixing)
        self.ffn = FeedForward(embed_dims, ffn_dims, dropout)
        self.norm1 = nn.LayerNorm(embed_dims)
        self.norm2 = nn.LayerNorm(embed_dims)
        self.norm3 = nn.LayerNorm(embed_dims)
        last = nn.Linear(embed_dims, out_points * point_channels)
        if prior_probability is not None:
            nn.init.constant_(last.bias, math.log(prior_probability / (1 - prior_probability)))
        self.cls_branch = nn.Sequential(*_linear_norm_relu(embed_dims, embed_dims, 2), last)
        self.reg_branch = nn.Sequential(
            nn.Linear(embed_dims, embed_dims),
            nn.ReLU(),
            nn.Linear(embed_dims, embed_dims),
            nn.ReLU(),
            ExactLinear(embed_dims, out_points * 3),  # metres
        )

    def forward(
        self,
        query_feats: Tensor,
        points: Tensor,
        points_m: Tensor,
        maps: FeatureMaps,
        with_point_feats: bool,
        seeds: Tensor | None = None,
        order: Tensor | None = None,
    ) -> LayerOutput:
        """Run the layer.

        Args:
            query_feats: ``[B, Q, C]``.
            points: ``[B, Q, R_in, 3]``, normalised.
            points_m: The same points in metres of the occ frame.
            maps: Feature maps.
            with_point_feats: Whether to run the class branch.
            seeds: int64 ``[3, B]``, of the dropout in self-attention and after each layer of the
                feed-forward network; None for no dropout.
            order: int64 ``[B, Q]``, processing order of self-attention; None to compute it.
        """
        centre = points_m.mean(2)
        code = self.position_encoder(points.flatten(2))
        placed = query_feats + code
        sampled, where = self.sampling(placed, points_m, maps)
        mixing = self.get_submodule(self.mixing_name)
        attention_seeds = None if seeds is None else seeds[0]
        if self.keeps_code:
            query_feats = self.norm1(mixing(sampled, placed))
            attended = self.self_attn(query_feats, centre, attention_seeds, order)
        else:
            query_feats = self.norm1(mixing(sampled, placed, query_feats))
            attended = self.self_attn(query_feats, centre, attention_seeds, order, code)
        query_feats = self.norm2(attended)
        query_feats = self.norm3(self.ffn(query_feats, None if seeds is None else seeds[1:]))
        offset = self.reg_branch(query_feats).unflatten(-1, (self.out_points, 3))
        refined = torch.nan_to_num(centre.unsqueeze(2) + offset * self.refine_scale_m)
        feats = None
        if with_point_feats:
            feats = self.cls_branch(query_feats).unflatten(-1, (self.out_points, -1))
            feats = torch.nan_to_num(feats).to(refined.dtype)
        return LayerOutput(query_feats, refined, feats, where.detach())


def _linear_norm_relu(in_dims: int, dims: int, times: int) -> list[nn.Module]:
    modules: list[nn.Module] = []
    for _ in range(times):
        modules += [nn.Linear(in_dims, dims), nn.LayerNorm(dims), nn.ReLU()]
        in_dims = dims
    return modules
