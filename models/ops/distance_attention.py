"""Multi-head self-attention whose logits fall with the distance between queries.

Dimensions:
    B batch, H heads, Q queries, d channels of a head.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from ._extension import SINGLE_AND_HALF, native, on_load, runs_natively
from .counter_hash import kept_by_dropout

__all__ = ["distance_attention", "distance_attention_reference"]

_DTYPES = (torch.float32, torch.float64, torch.float16, torch.bfloat16)
_MOST_CHANNELS_ON_GPU = 32  # of a head; they stay in a thread's registers


def distance_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    tau: Tensor,
    centres: Tensor,
    dropout_p: float = 0.0,
    seed: int = 0,
) -> Tensor:
    """Attention with the logits ``q·k / sqrt(d) - tau_q * |centre_q - centre_k|``.

    The scale-adaptive self-attention of SparseBEV (arXiv 2308.09244), as OPUS uses it. Softmax and
    weighted sum run tile by tile (Dao et al., arXiv 2205.14135) and distances are computed on the
    fly, so memory grows with Q, not with Q². Queries are visited in the order of their places;
    blocks of keys so far away that all their weights together are below a rounding error of the
    result (relative to the largest value) are skipped.

    Dropout decides by a hash of ``seed`` and position, so that the backward pass repeats it
    without a stored mask. Gradients are summed in a fixed order: results do not depend on the
    number of threads and repeat bit by bit. What is not finite spreads as it does in the twin.

    On a GPU heads of more than 32 channels and float64 go through the twin, whose memory grows
    with Q².

    Args:
        query: [B, H, Q, d], float32, float64, float16 or bfloat16, of any strides. Sums are in
            float32 (float64 for float64).
        key: [B, H, Q, d], same dtype.
        value: [B, H, Q, d], same dtype.
        tau: [B, H, Q], 1/metres, of the attending query; any sign.
        centres: [B, Q, 3], metres. Gets no gradient.
        dropout_p: probability that an attention weight is dropped, in [0, 1).
        seed: of the dropout.

    Returns:
        [B, H, Q, d] in ``query``'s dtype, laid out in memory as [B, Q, H, d]. Differentiable (once)
        in ``query``, ``key``, ``value`` and ``tau``.

    Raises:
        ValueError: shapes, dtypes or ``dropout_p`` do not fit.
        ExtensionError: the native extension is not built.
    """
    _check_arguments(query, key, value, tau, centres, dropout_p)
    is_wide = query.is_cuda and query.shape[3] > _MOST_CHANNELS_ON_GPU
    if is_wide or not runs_natively("distance_attention", query, on_gpu=SINGLE_AND_HALF):
        return distance_attention_reference(query, key, value, tau, centres, dropout_p, seed)
    return native("distance_attention")(query, key, value, tau, centres, dropout_p, seed)[0]


def distance_attention_reference(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    tau: Tensor,
    centres: Tensor,
    dropout_p: float = 0.0,
    seed: int = 0,
) -> Tensor:
    """Plain-torch twin of :func:`distance_attention`: a [B, H, Q, Q] mask. Same arguments."""
    _check_arguments(query, key, value, tau, centres, dropout_p)
    dtype = torch.float64 if query.dtype == torch.float64 else torch.float32
    q, k, v, rate = (tensor.to(dtype) for tensor in (query, key, value, tau))
    logits = q @ k.transpose(2, 3) / math.sqrt(q.shape[3])
    with torch.no_grad():
        # not through the matrix product |a|^2 + |b|^2 - 2ab, which cancels for close points
        distance = torch.cdist(
            centres.to(dtype), centres.to(dtype), compute_mode="donot_use_mm_for_euclid_dist"
        )
    weights = (logits - rate[..., None] * distance[:, None]).softmax(-1)
    if dropout_p > 0:
        kept = _kept_weights(weights.shape, dropout_p, seed, weights.device)
        weights = torch.where(kept, weights / (1 - dropout_p), 0.0)
    return (weights @ v).to(query.dtype)


def _kept_weights(shape: torch.Size, dropout_p: float, seed: int, device: torch.device) -> Tensor:
    """Which attention weights [B, H, Q, Q] dropout keeps; the native kernel's hash."""
    B, H, Q, _ = shape
    return kept_by_dropout((B * H * Q, Q), dropout_p, seed, device).view(shape)


def _check_arguments(
    query: Tensor, key: Tensor, value: Tensor, tau: Tensor, centres: Tensor, dropout_p: float
) -> None:
    if query.dim() != 4 or query.dtype not in _DTYPES:
        raise ValueError(
            f"query must be float32, float64, float16 or bfloat16 [B, H, Q, d], got "
            f"{query.dtype} {list(query.shape)}"
        )
    B, H, Q, _ = query.shape
    for name, tensor in (("key", key), ("value", value)):
        if tensor.shape != query.shape or tensor.dtype != query.dtype:
            raise ValueError(
                f"{name} must be {query.dtype} {list(query.shape)} as query, got {tensor.dtype} "
                f"{list(tensor.shape)}"
            )
    if tau.shape != (B, H, Q):
        raise ValueError(f"tau must be {[B, H, Q]}, got {list(tau.shape)}")
    if centres.shape != (B, Q, 3):
        raise ValueError(f"centres must be {[B, Q, 3]}, got {list(centres.shape)}")
    if not 0 <= dropout_p < 1:
        raise ValueError(f"dropout_p must lie in [0, 1), got {dropout_p}")


@on_load
def _register() -> None:
    @torch.library.register_fake("opus::distance_attention")
    def _(
        query: Tensor, key: Tensor, value: Tensor, tau: Tensor, centres: Tensor,
        dropout_p: float, seed: int,
    ) -> tuple[Tensor, Tensor]:  # fmt: skip
        B, H, Q, d = query.shape
        wide = torch.float64 if query.dtype == torch.float64 else torch.float32
        return (
            query.new_empty((B, Q, H, d)).transpose(1, 2),
            query.new_empty((B, H, Q), dtype=wide),
        )

    @torch.library.register_fake("opus::distance_attention_backward")
    def _(
        grad: Tensor, query: Tensor, key: Tensor, value: Tensor, tau: Tensor, centres: Tensor,
        out: Tensor, log_sum: Tensor, dropout_p: float, seed: int,
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
        B, H, Q, d = query.shape
        d_query, d_key, d_value = (query.new_empty((B, Q, H, d)).transpose(1, 2) for _ in range(3))
        return d_query, d_key, d_value, tau.new_empty(tau.shape)

    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
        *tensors, ctx.dropout_p, ctx.seed = inputs
        ctx.mark_non_differentiable(output[1])
        ctx.save_for_backward(*tensors, *output)

    def backward(ctx: Any, grad: Tensor, _: Tensor) -> tuple[Any, ...]:
        d_query, d_key, d_value, d_tau = torch.ops.opus.distance_attention_backward(
            grad, *ctx.saved_tensors, ctx.dropout_p, ctx.seed
        )
        return d_query, d_key, d_value, d_tau, None, None, None

    torch.library.register_autograd(
        "opus::distance_attention", backward, setup_context=setup_context
    )
