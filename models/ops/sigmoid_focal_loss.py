"""Summed focal loss over independent sigmoid classifiers.

Dimensions:
    n rows (points or voxels), K classes.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ._extension import native, on_load, runs_natively

__all__ = ["sigmoid_focal_loss", "sigmoid_focal_loss_reference"]


def sigmoid_focal_loss(
    logits: Tensor,
    labels: Tensor,
    class_weights: Tensor,
    row_weights: Tensor | None = None,
    gamma: float = 2.0,
    alpha: float = 0.25,
) -> Tensor:
    """Sum the weighted focal loss of every logit (Lin et al., arXiv 1708.02002, Eq. 5).

    The loss of a logit x is `alpha * sigmoid(-x)**gamma * softplus(-x)` for the row's label and
    `(1 - alpha) * sigmoid(x)**gamma * softplus(x)` for every other class, times the weights of its
    class and row. It is computed in one pass; only the inputs are stored for the backward pass. The
    sum is in float64 and does not depend on the number of threads. On a GPU, float64 inputs use
    the reference implementation.

    Args:
        logits: [n, K], float32 or float64.
        labels: int64 [n]; a label outside `[0, K)` is positive for no class.
        class_weights: [K].
        row_weights: [n], or None for 1.
        gamma: exponent that down-weights easy examples.
        alpha: weight of positives; negatives get `1 - alpha`.

    Returns:
        Scalar, differentiable (once) in `logits`.

    Raises:
        ValueError: a shape or dtype does not fit.
        ExtensionError: the native extension is not built.
    """
    _check_arguments(logits, labels, class_weights, row_weights)
    if not runs_natively("sigmoid_focal_loss", logits, on_gpu=(torch.float32,)):
        return sigmoid_focal_loss_reference(
            logits, labels, class_weights, row_weights, gamma, alpha
        )
    return native("sigmoid_focal_loss")(logits, labels, class_weights, row_weights, gamma, alpha)


def sigmoid_focal_loss_reference(
    logits: Tensor,
    labels: Tensor,
    class_weights: Tensor,
    row_weights: Tensor | None = None,
    gamma: float = 2.0,
    alpha: float = 0.25,
) -> Tensor:
    """Compute `sigmoid_focal_loss` in plain torch (reference implementation)."""
    _check_arguments(logits, labels, class_weights, row_weights)

    is_label = labels[:, None] == torch.arange(logits.shape[1], device=logits.device)
    # One expression for both signs: torch.where of two would give NaN for infinite logits.
    x = torch.where(is_label, -logits, logits)
    factor = logits.new_tensor([1 - alpha, alpha])[is_label.long()]
    # torch's softplus becomes linear above a threshold, its logsigmoid does not
    terms = (factor * torch.sigmoid(x).pow(gamma) * -F.logsigmoid(-x)).double() * class_weights
    if row_weights is not None:
        terms = terms * row_weights[:, None]
    return terms.sum().to(logits.dtype)


def _check_arguments(
    logits: Tensor, labels: Tensor, class_weights: Tensor, row_weights: Tensor | None
) -> None:
    if logits.dim() != 2 or logits.dtype not in (torch.float32, torch.float64):
        raise ValueError(
            f"logits must be float32 or float64 [n, K], got {logits.dtype} {list(logits.shape)}"
        )
    n, classes = logits.shape
    if labels.shape != (n,) or labels.dtype != torch.int64:
        raise ValueError(f"labels must be int64 [{n}], got {labels.dtype} {list(labels.shape)}")
    if class_weights.shape != (classes,):
        raise ValueError(f"class_weights must be [{classes}], got {list(class_weights.shape)}")
    if row_weights is not None and row_weights.shape != (n,):
        raise ValueError(f"row_weights must be [{n}], got {list(row_weights.shape)}")


@on_load
def _register() -> None:
    @torch.library.register_fake("opus::sigmoid_focal_loss")
    def _(
        logits: Tensor, labels: Tensor, class_weights: Tensor, row_weights: Tensor | None,
        gamma: float, alpha: float,
    ) -> Tensor:  # fmt: skip
        return logits.new_empty(())

    @torch.library.register_fake("opus::sigmoid_focal_loss_backward")
    def _(
        grad: Tensor, logits: Tensor, labels: Tensor, class_weights: Tensor,
        row_weights: Tensor | None, gamma: float, alpha: float,
    ) -> Tensor:  # fmt: skip
        return logits.new_empty(logits.shape)

    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        *tensors, ctx.gamma, ctx.alpha = inputs
        ctx.save_for_backward(*tensors)

    def backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
        d_logits = torch.ops.opus.sigmoid_focal_loss_backward(
            grad, *ctx.saved_tensors, ctx.gamma, ctx.alpha
        )
        return d_logits, None, None, None, None, None

    torch.library.register_autograd(
        "opus::sigmoid_focal_loss", backward, setup_context=setup_context
    )
