"""Multi-head self-attention with logits that decrease with the distance between queries.

Dimensions:
    B batch, H heads, Q queries, d channels of a head.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from ._extension import SINGLE_AND_HALF, native, on_load, runs_natively
from .counter_hash import kept_by_dropout, sample_seeds

__all__ = ["attention_order", "distance_attention", "distance_attention_reference"]

_DTYPES = (torch.float32, torch.float64, torch.float16, torch.bfloat16)
_MOST_CHANNELS_ON_GPU = 32  # per head: a thread keeps them in registers


def distance_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    tau: Tensor,
    centres: Tensor,
    dropout_p: float = 0.0,
    seed: int | Tensor = 0,
    order: Tensor | None = None,
) -> Tensor:
    """Compute attention with logits `q·k / sqrt(d) - tau_q * |centre_q - centre_k|`.

    This is the scale-adaptive self-attention of SparseBEV (arXiv 2308.09244), as used in OPUS.
    Softmax and weighted sum are computed tile by tile (Dao et al., arXiv 2205.14135) and distances
    on the fly, so memory grows with Q, not with Q². Queries are processed in spatial order. Blocks
    of distant keys are skipped if the sum of all skipped weights is below the rounding error of
    the result (relative to the largest value).

    The dropout mask is a hash of the sample's seed and the position; the backward pass recomputes
    it. Seeds in a tensor are read when the kernels run; a replayed CUDA graph uses the current
    seeds. Gradients are summed in a fixed order: results are bitwise reproducible for any number of
    threads. Non-finite values propagate as in the reference implementation.

    On a GPU, float64 and heads of more than 32 channels use the reference implementation, whose
    memory grows with Q².

    Args:
        query: [B, H, Q, d], float32, float64, float16 or bfloat16, with any strides. Sums are in
            float32 (float64 for float64).
        key: [B, H, Q, d], same dtype.
        value: [B, H, Q, d], same dtype.
        tau: [B, H, Q], 1/metres, of the attending query; any sign.
        centres: [B, Q, 3], metres. Not differentiable.
        dropout_p: probability that an attention weight is dropped, in [0, 1).
        seed: seed of the dropout: a number in [0, 2**63), or int64 [B] with one per sample.
        order: int64 [B, Q], processing order of each sample's queries; None to compute
            `attention_order`. It changes results only by rounding; a spatial order skips the most
            blocks.

    Returns:
        [B, H, Q, d] in `query`'s dtype, laid out in memory as [B, Q, H, d]. Differentiable (once)
        in `query`, `key`, `value` and `tau`.

    Raises:
        ValueError: shapes, dtypes or `dropout_p` do not fit.
        ExtensionError: the native extension is not built.
    """
    _check_arguments(query, key, value, tau, centres, dropout_p)
    seeds = sample_seeds(seed, len(query), query.device) if dropout_p > 0 else None
    is_wide = query.is_cuda and query.shape[3] > _MOST_CHANNELS_ON_GPU
    if is_wide or not runs_natively("distance_attention", query, on_gpu=SINGLE_AND_HALF):
        seed = 0 if seeds is None else seeds
        return distance_attention_reference(query, key, value, tau, centres, dropout_p, seed)
    inputs = (query, key, value, tau, centres, dropout_p, seeds, order)
    return native("distance_attention")(*inputs)[0]


def attention_order(centres: Tensor) -> Tensor:
    """Return the order of queries along a space-filling curve, int64 [B, Q].

    On a GPU, small numbers of queries keep their order, because sorting takes longer than it saves.

    Args:
        centres: [B, Q, 3], metres.
    """
    if not runs_natively("attention_order", centres):
        number = torch.arange(centres.shape[1], device=centres.device)
        return number.expand(centres.shape[:2]).contiguous()
    return native("attention_order")(centres)


def distance_attention_reference(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    tau: Tensor,
    centres: Tensor,
    dropout_p: float = 0.0,
    seed: int | Tensor = 0,
    order: Tensor | None = None,
) -> Tensor:
    """Compute `distance_attention` in plain torch with a [B, H, Q, Q] mask (reference
    implementation).
    """
    _check_arguments(query, key, value, tau, centres, dropout_p)
    dtype = torch.float64 if query.dtype == torch.float64 else torch.float32
    q, k, v, rate = (tensor.to(dtype) for tensor in (query, key, value, tau))
    logits = q @ k.transpose(2, 3) / math.sqrt(q.shape[3])
    with torch.no_grad():
        # without the matrix product |a|^2 + |b|^2 - 2ab, which suffers from cancellation
        distance = torch.cdist(
            centres.to(dtype), centres.to(dtype), compute_mode="donot_use_mm_for_euclid_dist"
        )
    weights = (logits - rate[..., None] * distance[:, None]).softmax(-1)
    if dropout_p > 0:
        B, H, Q, _ = weights.shape
        seeds = sample_seeds(seed, B, weights.device)
        kept = kept_by_dropout((H * Q, Q), dropout_p, seeds).view(weights.shape)
        weights = torch.where(kept, weights / (1 - dropout_p), 0.0)
    return (weights @ v).to(query.dtype)


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
        dropout_p: float, seeds: Tensor | None, order: Tensor | None,
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
        out: Tensor, log_sum: Tensor, dropout_p: float, seeds: Tensor | None,
        order: Tensor | None,
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
        B, H, Q, d = query.shape
        d_query, d_key, d_value = (query.new_empty((B, Q, H, d)).transpose(1, 2) for _ in range(3))
        return d_query, d_key, d_value, tau.new_empty(tau.shape)

    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
        *tensors, ctx.dropout_p, seeds, order = inputs
        ctx.mark_non_differentiable(output[1])
        ctx.save_for_backward(*tensors, *output, seeds, order)

    def backward(ctx: Any, grad: Tensor, _: Tensor) -> tuple[Any, ...]:
        *saved, seeds, order = ctx.saved_tensors
        d_query, d_key, d_value, d_tau = torch.ops.opus.distance_attention_backward(
            grad, *saved, ctx.dropout_p, seeds, order
        )
        return d_query, d_key, d_value, d_tau, None, None, None, None

    @torch.library.register_fake("opus::attention_order")
    def _(centres: Tensor) -> Tensor:
        return centres.new_empty(centres.shape[:2], dtype=torch.int64)

    torch.library.register_autograd(
        "opus::distance_attention", backward, setup_context=setup_context
    )
