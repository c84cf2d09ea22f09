"""Adaptive mixing of sampled features with weights generated from the query.

Dimension letters: B batch, Q queries, G groups, C embedding channels, c = C / G, S_in sampled
features of a group, S_out mixed features of a group.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models import ops

# Generated parameters that are in memory at once without gradients: 16 MiB in single precision fit
# into a last-level cache.
_PARAMETERS_AT_ONCE = 4 * 2**20


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

    def forward(
        self, sampled: Tensor, query_feats: Tensor, residual: Tensor | None = None
    ) -> Tensor:
        """Return updated query features ``[B, Q, C]``.

        Args:
            sampled: ``[B, Q, G, S_in, c]``.
            query_feats: ``[B, Q, C]``, input of the generator.
            residual: ``[B, Q, C]``, added to the result; None for ``query_feats``.
        """
        residual = query_feats if residual is None else residual
        if query_feats.device.type != "cpu" or torch.is_autocast_enabled("cpu"):
            return self._mix_together(sampled, query_feats, residual)
        queries = query_feats.flatten(0, 1)  # n = B*Q
        groups = sampled.flatten(0, 1).unbind(1)  # G of [n, S_in, c]
        # One group after another: the parameters of all groups together are by far the largest
        # tensor of the decoder.
        generators = self.parameter_generator.weight.chunk(self.num_groups)
        biases = self.parameter_generator.bias.chunk(self.num_groups)
        projections = self.out_proj.weight.chunk(self.num_groups, dim=1)
        out = residual.flatten(0, 1) + self.out_proj.bias
        for x, weight, bias, projection in zip(
            groups, generators, biases, projections, strict=True
        ):
            mixed = self._mix(x, queries, weight, bias)
            out = torch.addmm(out, mixed, projection.t())
        return out.view_as(query_feats)

    def _mix_together(
        self, sampled: Tensor, query_feats: Tensor, residual: Tensor | None = None
    ) -> Tensor:
        """Mix all groups together, with one matrix product before and one after.

        On a GPU this needs the fewest launches. In 16 bits, a sum over groups is rounded once.
        """
        residual = query_feats if residual is None else residual
        count = query_feats.shape[:-1].numel() * self.num_groups
        parameters = self.parameter_generator(query_feats).view(count, -1)
        rows = sampled.reshape(count, self.in_points, self.group_dims).to(parameters.dtype)
        mixed = ops.adaptive_mixing(rows, parameters, self.out_points)
        return residual + self.out_proj(mixed.view(*query_feats.shape[:-1], -1))

    def _mix(self, x: Tensor, queries: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        """Mix one group ``[n, S_in, c]`` of queries ``[n, C]`` to ``[n, S_out * c]``."""
        size = len(queries)
        if not torch.is_grad_enabled():
            size = max(256, _PARAMETERS_AT_ONCE // len(weight))
        mixed = [
            ops.adaptive_mixing(some, F.linear(query, weight, bias), self.out_points)
            for some, query in zip(x.split(size or 1), queries.split(size or 1), strict=True)
        ]
        return (mixed[0] if len(mixed) == 1 else torch.cat(mixed)).flatten(1)
