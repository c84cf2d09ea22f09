"""Adaptive mixing of sampled features with weights generated from the query.

Dimension letters: B batch, Q queries, G groups, C embedding channels, c = C / G, S_in sampled
features of a group, S_out mixed features of a group.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class AdaptiveMixing(nn.Module):
    """Mix channels, then sampled points, per query and group (AdaMixer, arXiv 2203.16507).

    Args:
        embed_dims: C.
        num_groups: G.
        in_points: S_in.
        out_points: S_out.
    """

    def __init__(self, embed_dims: int, num_groups: int, in_points: int, out_points: int) -> None:
        super().__init__()
        self.num_groups = num_groups
        self.group_dims = embed_dims // num_groups
        self.in_points = in_points
        self.out_points = out_points
        per_group = self.group_dims**2 + in_points * out_points
        self.parameter_generator = nn.Linear(embed_dims, num_groups * per_group)
        self.out_proj = nn.Linear(num_groups * out_points * self.group_dims, embed_dims)
        nn.init.zeros_(self.parameter_generator.weight)

    def forward(self, sampled: Tensor, query_feats: Tensor) -> Tensor:
        """Return updated query features ``[B, Q, C]``.

        Args:
            sampled: ``[B, Q, G, S_in, c]``.
            query_feats: ``[B, Q, C]``.
        """
        c, s_in, s_out = self.group_dims, self.in_points, self.out_points
        # [B*Q*G, ...] from here on: one small matrix product per query and group
        parameters = self.parameter_generator(query_feats).view(-1, c * c + s_out * s_in)
        channel_mix = parameters[:, : c * c].unflatten(1, (c, c))
        point_mix = parameters[:, c * c :].unflatten(1, (s_out, s_in))
        x = torch.bmm(sampled.reshape(-1, s_in, c), channel_mix)
        x = F.relu(F.layer_norm(x, (s_in, c)))
        x = torch.bmm(point_mix, x)
        x = F.relu(F.layer_norm(x, (s_out, c)))
        return query_feats + self.out_proj(x.view(*query_feats.shape[:2], -1))
