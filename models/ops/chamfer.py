"""Distances between matched points, the terms of a Chamfer loss.

Dimensions:
    N points, M references.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ._extension import native, on_load, runs_natively

__all__ = ["chamfer_terms", "chamfer_terms_reference"]


def chamfer_terms(query: Tensor, reference: Tensor, index: Tensor, beta: float) -> Tensor:
    """Compute the SmoothL1 of `query - reference[index]`, summed over x, y, z.

    Differentiable in both point sets. Only the arguments are stored for the backward pass, which
    recomputes the differences. If several points share a reference, its gradients are added in
    point order on a CPU and in any order on a GPU. Under `torch.use_deterministic_algorithms` the
    order is reproducible on both.

    Args:
        query: [N, 3], float32 or float64; float16 and bfloat16 are computed in float32.
        reference: [M, 3], same dtype.
        index: int64 [N], see `nearest_neighbor`. The term of an index outside 0 ... M - 1 is zero.
        beta: Positive; SmoothL1 is quadratic for differences below it.

    Returns:
        [N], in the dtype of the computation.

    Raises:
        ValueError: a shape, dtype or number does not fit.
        ExtensionError: the native extension is not built.
    """
    if not runs_natively("chamfer_terms", query):
        return chamfer_terms_reference(query, reference, index, beta)
    return native("chamfer_terms")(_computed(query), _computed(reference), index, float(beta))


def chamfer_terms_reference(query: Tensor, reference: Tensor, index: Tensor, beta: float) -> Tensor:
    """Compute `chamfer_terms` in plain torch (reference implementation)."""
    query, reference = _computed(query), _computed(reference)
    exists = (index >= 0) & (index < len(reference))
    nearest = reference.index_select(0, torch.where(exists, index, 0))
    terms = F.smooth_l1_loss(query, nearest, beta=beta, reduction="none").sum(-1)
    return torch.where(exists, terms, 0.0)


def _computed(points: Tensor) -> Tensor:
    return points.float() if points.dtype in (torch.float16, torch.bfloat16) else points


@on_load
def _register() -> None:
    @torch.library.register_fake("opus::chamfer_terms")
    def _(query: Tensor, reference: Tensor, index: Tensor, beta: float) -> Tensor:
        return query.new_empty(query.shape[0])

    @torch.library.register_fake("opus::chamfer_terms_backward")
    def _(
        grad: Tensor,
        query: Tensor,
        reference: Tensor,
        index: Tensor,
        beta: float,
        need_query: bool,
        need_reference: bool,
    ) -> tuple[Tensor, Tensor]:
        return (
            query.new_empty((query.shape[0] if need_query else 0, 3)),
            query.new_empty((reference.shape[0] if need_reference else 0, 3)),
        )

    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        *tensors, ctx.beta = inputs
        ctx.save_for_backward(*tensors)

    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        need_query, need_reference = ctx.needs_input_grad[:2]
        of_query, of_reference = native("chamfer_terms_backward")(
            grad, *ctx.saved_tensors, ctx.beta, need_query, need_reference
        )
        return (
            of_query if need_query else None,
            of_reference if need_reference else None,
            None,
            None,
        )

    torch.library.register_autograd("opus::chamfer_terms", backward, setup_context=setup_context)
