"""Distances of matched points, the terms of a Chamfer loss.

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

    Differentiable in both point sets. The backward pass stores only the arguments and recomputes
    the differences. Gradients of a reference that several points share are added in the order of
    the points on a CPU; in any order on a GPU; in a reproducible order under
    `torch.use_deterministic_algorithms`.

    Args:
        query: [N, 3], float32 or float64; float16 and bfloat16 are computed in float32.
        reference: [M, 3], of the same dtype.
        index: int64 [N], see `nearest_neighbor`; a pair with an index outside 0 ... M - 1
            gives zero.
        beta: Differences below it count by their square, positive.

    Returns:
        [N], in the precision of the computation.

    Raises:
        ValueError: a shape, dtype or number does not fit.
        ExtensionError: the native extension is not built.
    """
    if not runs_natively("chamfer_terms", query):
        return chamfer_terms_reference(query, reference, index, beta)
    return native("chamfer_terms")(_computed(query), _computed(reference), index, float(beta))


def chamfer_terms_reference(query: Tensor, reference: Tensor, index: Tensor, beta: float) -> Tensor:
    """Compute `chamfer_terms` in plain torch, as a reference. Same arguments."""
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
