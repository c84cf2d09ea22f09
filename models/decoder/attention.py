"""Self-attention between queries that fades with their distance.

Dimension letters: B batch, Q queries, H heads, C embedding channels.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class PackedSelfAttention(nn.Module):
    """Multi-head self-attention with an additive bias; parameters named as torch's own.

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

    def forward(self, x: Tensor, bias: Tensor) -> Tensor:
        """Attend within ``x`` ``[B, Q, C]`` with logits plus ``bias`` ``[B, H, Q, Q]``."""
        qkv = F.linear(x, self.in_proj_weight, self.in_proj_bias)
        q, k, v = qkv.unflatten(-1, (3, self.num_heads, -1)).permute(2, 0, 3, 1, 4)  # [B, H, Q, .]
        out = F.scaled_dot_product_attention(
            q, k, v, attn_mask=bias, dropout_p=self.dropout if self.training else 0.0
        )
        return self.out_proj(out.transpose(1, 2).flatten(2))


class ScaleAdaptiveSelfAttention(nn.Module):
    """Self-attention whose logits fall with distance, at a rate the attending query chooses.

    The logit of head h between queries q and k gets ``-tau[q, h] * |centre_q - centre_k|``
    (SparseBEV, arXiv 2308.09244).

    Args:
        embed_dims: C.
        num_heads: H.
        dropout: Probability to drop attention weights and outputs.
    """

    def __init__(self, embed_dims: int, num_heads: int = 8, dropout: float = 0.1) -> None:
        super().__init__()
        attention = PackedSelfAttention(embed_dims, num_heads, dropout)
        self.attention = nn.ModuleDict({"attn": attention})  # the published parameter names
        self.gen_tau = nn.Linear(embed_dims, num_heads)
        self.dropout = nn.Dropout(dropout)
        nn.init.zeros_(self.gen_tau.weight)
        nn.init.uniform_(self.gen_tau.bias, 0.0, 2.0)

    def forward(self, query_feats: Tensor, centres: Tensor) -> Tensor:
        """Return ``query_feats`` ``[B, Q, C]`` plus what was attended to.

        Args:
            query_feats: ``[B, Q, C]``.
            centres: ``[B, Q, 3]`` in metres; gets no gradient.
        """
        with torch.no_grad():
            # not through the matrix product |a|^2 + |b|^2 - 2ab, which cancels for close points
            distance = torch.cdist(centres, centres, compute_mode="donot_use_mm_for_euclid_dist")
        tau = self.gen_tau(query_feats).transpose(1, 2)  # [B, H, Q]
        bias = -tau.unsqueeze(-1) * distance.unsqueeze(1)
        return query_feats + self.dropout(self.attention["attn"](query_feats, bias))
