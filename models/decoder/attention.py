"""Self-attention between queries that decreases with their distance.

Dimension letters: B batch, Q queries, H heads, C embedding channels.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models import ops


class PackedSelfAttention(nn.Module):
    """Multi-head self-attention that decreases with distance; parameters are named as in torch.

    Args:
        embed_dims: C.
        num_heads: H, divides C.
        dropout: Probability to drop an attention weight.
    """

    def __init__(self, embed_dims: int, num_heads: int, dropout: float) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.dropout = dropout
        self.in_proj_weight = nn.Parameter(torch.empty(3 * embed_dims, embed_dims))
        self.in_proj_bias = nn.Parameter(torch.zeros(3 * embed_dims))
        self.out_proj = nn.Linear(embed_dims, embed_dims)
        nn.init.xavier_uniform_(self.in_proj_weight)
        nn.init.zeros_(self.out_proj.bias)

    def forward(
        self,
        x: Tensor,
        tau: Tensor,
        centres: Tensor,
        seeds: Tensor | None = None,
        order: Tensor | None = None,
        code: Tensor | None = None,
    ) -> Tensor:
        """Attend within ``x``.

        Args:
            x: ``[B, Q, C]``.
            tau: ``[B, Q, H]``, decrease of the logits per metre.
            centres: ``[B, Q, 3]`` in metres.
            seeds: int64 ``[B]``, of the dropout; None for no dropout.
            order: int64 ``[B, Q]``, processing order of the queries; None to compute it.
            code: ``[B, Q, C]``, added to queries and keys, not to values.
        """
        qkv = F.linear(x, self.in_proj_weight, self.in_proj_bias)
        if code is not None:
            of_code = F.linear(code, self.in_proj_weight[: -x.shape[-1]])
            qkv = qkv + F.pad(of_code, (0, x.shape[-1]))
        q, k, v = qkv.unflatten(-1, (3, self.num_heads, -1)).permute(2, 0, 3, 1, 4)  # [B, H, Q, .]
        tau = tau.transpose(1, 2)
        dropout = 0.0 if seeds is None else self.dropout
        seed = 0 if seeds is None else seeds
        out = ops.distance_attention(q, k, v, tau, centres, dropout, seed, order)
        return self.out_proj(out.transpose(1, 2).flatten(2))


class ScaleAdaptiveSelfAttention(nn.Module):
    """Self-attention whose logits decrease with distance, at a rate computed from the query.

    The logit of head h between queries q and k gets ``-tau[q, h] * |centre_q - centre_k|``
    (SparseBEV, arXiv 2308.09244).

    Args:
        embed_dims: C.
        num_heads: H.
        dropout: Probability to drop an attention weight. The output is not dropped, as published.
    """

    def __init__(self, embed_dims: int, num_heads: int = 8, dropout: float = 0.1) -> None:
        super().__init__()
        attention = PackedSelfAttention(embed_dims, num_heads, dropout)
        self.attention = nn.ModuleDict({"attn": attention})  # the published parameter names
        self.gen_tau = nn.Linear(embed_dims, num_heads)
        nn.init.zeros_(self.gen_tau.weight)
        nn.init.uniform_(self.gen_tau.bias, 0.0, 2.0)

    def forward(
        self,
        query_feats: Tensor,
        centres: Tensor,
        seeds: Tensor | None = None,
        order: Tensor | None = None,
        code: Tensor | None = None,
    ) -> Tensor:
        """Return ``query_feats`` ``[B, Q, C]`` plus the attention output.

        Args:
            query_feats: ``[B, Q, C]``.
            centres: ``[B, Q, 3]`` in metres; not differentiable.
            seeds: int64 ``[B]``, of the dropout; None for no dropout.
            order: int64 ``[B, Q]``, processing order of the queries; None to compute it.
            code: Position code ``[B, Q, C]``, added to the input of queries, keys and ``tau``, not
                of values; None if the features contain it.
        """
        tau = self.gen_tau(query_feats if code is None else query_feats + code)
        attended = self.attention["attn"](query_feats, tau, centres, seeds, order, code)
        return query_feats + attended
