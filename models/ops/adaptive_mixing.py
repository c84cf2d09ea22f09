"""Mixing sampled features with weights that a query generates.

Dimensions:
    n groups of queries (batch, queries and groups in one), c channels of a group, S_in sampled
    features, S_out mixed features.
"""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ._extension import SINGLE_AND_HALF, native, on_load, runs_natively

__all__ = ["adaptive_mixing", "adaptive_mixing_reference"]

_DTYPES = (torch.float32, torch.float64, torch.float16, torch.bfloat16)


def adaptive_mixing(sampled: Tensor, parameters: Tensor, out_points: int) -> Tensor:
    """Mix channels, then points: `ReLU(norm(S · ReLU(norm(x · M))))`.

    The core of AdaMixer (arXiv 2203.16507). A row of `parameters` holds M [c, c], then
    S [S_out, S_in]; `norm` is a layer norm over both axes without affine part. Each group
    is computed in one pass, in cache or in the shared memory of a GPU; only the inputs are stored
    for the backward pass. On a GPU float64 goes through the
    twin. A group with a number that is not finite, or whose variance in one of the two norms is
    beyond the largest number, gives NaN throughout, gradients too.

    Args:
        sampled: x, [n, S_in, c], float32, float64, float16 or bfloat16; rows may lie at any
            distance from each other. Sums are in float32 (float64 for float64).
        parameters: [n, c * c + S_out * S_in], same dtype.
        out_points: S_out.

    Returns:
        [n, S_out, c], contiguous. Differentiable (once) in `sampled` and `parameters`.

    Raises:
        ValueError: shapes or dtypes do not fit.
        ExtensionError: the native extension is not built.
    """
    _check_arguments(sampled, parameters, out_points)
    if not runs_natively("adaptive_mixing", sampled, on_gpu=SINGLE_AND_HALF):
        return adaptive_mixing_reference(sampled, parameters, out_points)
    return native("adaptive_mixing")(sampled, parameters, out_points)


def adaptive_mixing_reference(sampled: Tensor, parameters: Tensor, out_points: int) -> Tensor:
    """Compute `adaptive_mixing` in plain torch, as a reference. Same arguments."""
    _check_arguments(sampled, parameters, out_points)
    s_in, c = sampled.shape[1:]
    dtype = torch.float64 if sampled.dtype == torch.float64 else torch.float32
    wide = parameters.to(dtype)
    channel_mix = wide[:, : c * c].unflatten(1, (c, c))
    point_mix = wide[:, c * c :].unflatten(1, (out_points, s_in))
    x = torch.bmm(sampled.to(dtype), channel_mix)
    x = F.relu(_normalise(x))
    x = torch.bmm(point_mix, x)
    return F.relu(_normalise(x)).to(sampled.dtype)


def _normalise(x: Tensor) -> Tensor:
    """Layer norm of the last two axes; torch's own hides some variances that overflow."""
    delta = x - x.mean((1, 2), keepdim=True)
    variance = delta.square().mean((1, 2), keepdim=True)
    inverse = 1 / (variance + 1e-5).sqrt()
    return delta * torch.where(variance.isfinite(), inverse, math.nan)


def _check_arguments(sampled: Tensor, parameters: Tensor, out_points: int) -> None:
    if sampled.dim() != 3 or 0 in sampled.shape[1:] or sampled.dtype not in _DTYPES:
        raise ValueError(
            f"sampled must be float32, float64, float16 or bfloat16 [n, S_in, c], got "
            f"{sampled.dtype} {list(sampled.shape)}"
        )
    n, s_in, c = sampled.shape
    if out_points < 1:
        raise ValueError(f"out_points must be positive, got {out_points}")
    wanted = (n, c * c + out_points * s_in)
    if parameters.shape != wanted or parameters.dtype != sampled.dtype:
        raise ValueError(
            f"parameters must be {sampled.dtype} {list(wanted)}, got {parameters.dtype} "
            f"{list(parameters.shape)}"
        )


@on_load
def _register() -> None:
    @torch.library.register_fake("opus::adaptive_mixing")
    def _(sampled: Tensor, parameters: Tensor, out_points: int) -> Tensor:
        return sampled.new_empty((sampled.shape[0], out_points, sampled.shape[2]))

    @torch.library.register_fake("opus::adaptive_mixing_backward")
    def _(
        grad: Tensor, sampled: Tensor, parameters: Tensor, out_points: int
    ) -> tuple[Tensor, Tensor]:
        return sampled.new_empty(sampled.shape), parameters.new_empty(parameters.shape)

    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        sampled, parameters, ctx.out_points = inputs
        ctx.save_for_backward(sampled, parameters)

    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, None]:
        d_sampled, d_parameters = torch.ops.opus.adaptive_mixing_backward(
            grad, *ctx.saved_tensors, ctx.out_points
        )
        return d_sampled, d_parameters, None

    torch.library.register_autograd("opus::adaptive_mixing", backward, setup_context=setup_context)
