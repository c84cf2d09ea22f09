"""3 x 3 convolutions with a quarter of the multiplications, on the CPU.

Dimensions: I images, C and K channels in and out, H, W size of an image.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from ._extension import native, on_load

__all__ = ["winograd_conv", "winograd_conv_reference"]

# Multiple of the numbers of channels: kChannels of models/csrc/winograd_conv/winograd_conv.h.
_CHANNELS = 16
# From three taps to the factors at 0, 1, -1, 2, -2 and infinity.
_TAPS = (
    (1 / 4, 0.0, 0.0),
    (-1 / 6, -1 / 6, -1 / 6),
    (-1 / 6, 1 / 6, -1 / 6),
    (1 / 24, 1 / 12, 1 / 6),
    (1 / 24, -1 / 12, 1 / 6),
    (0.0, 0.0, 1.0),
)


def winograd_conv(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """Convolve with a 3 x 3 kernel, stride 1 and one pixel of zero padding.

    On the CPU, float32 tensors whose numbers of channels are multiples of 16 go through Winograd's
    algorithm F(4 x 4, 3 x 3) (Lavin and Gray, arXiv 1509.09308): tiles of 6 x 6 inputs give tiles
    of 4 x 4 outputs with 36 instead of 144 multiplications for each pair of channels. So do both
    gradients. Results differ from those of `torch.nn.functional.conv2d` by rounding, about 3e-6 of
    their standard deviation. A number that is not finite reaches all outputs of the tiles that
    read it.

    Other tensors go through `conv2d`, and so do all under autocast and while `torch.compile` or an
    export traces.

    Args:
        x: [I, C, H, W], of any strides. Channels-last images are read in place.
        weight: [K, C, 3, 3].
        bias: [K].

    Returns:
        [I, K, H, W], channels-last in memory if computed natively. Differentiable once in all
        arguments.

    Raises:
        ValueError: `weight` is not [K, C, 3, 3].
        ExtensionError: the native extension is not built.
    """
    _check_arguments(x, weight)
    tensors = [x, weight] if bias is None else [x, weight, bias]
    is_native = all(t.device.type == "cpu" and t.dtype == torch.float32 for t in tensors)
    is_native &= not (weight.shape[0] % _CHANNELS or weight.shape[1] % _CHANNELS)
    is_traced = torch.compiler.is_compiling() or torch.jit.is_tracing()
    if not is_native or is_traced or torch.is_autocast_enabled("cpu"):
        return winograd_conv_reference(x, weight, bias)
    if torch.is_grad_enabled() and any(t.requires_grad for t in tensors):
        return _WinogradConv.apply(x, weight, bias)
    return native("winograd_conv")(x, _factors(weight), bias)


def winograd_conv_reference(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """Compute `winograd_conv` in plain torch, as a reference. Same arguments."""
    _check_arguments(x, weight)
    return F.conv2d(x, weight, bias, padding=1)


class _WinogradConv(torch.autograd.Function):
    """The convolution with gradients by the same algorithm."""

    @staticmethod
    def forward(  # type: ignore[override]
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None
    ) -> Tensor:
        ctx.save_for_backward(x, weight)
        return native("winograd_conv")(x, _factors(weight), bias)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        x, weight = ctx.saved_tensors
        need_x, need_weight, need_bias = ctx.needs_input_grad
        grad_x = grad_weight = None
        if need_x:
            turned = weight.transpose(0, 1).flip(2, 3)
            grad_x = native("winograd_conv")(grad, _factors(turned), None)
        if need_weight:
            grad_weight = _taps(native("winograd_weight_grad")(x, grad))
        return grad_x, grad_weight, grad.sum((0, 2, 3)) if need_bias else None


def _factors(weight: Tensor) -> Tensor:
    """Return the transformed taps [36, C, K] of weights [K, C, 3, 3]."""
    K, C = weight.shape[:2]
    taps = weight.permute(2, 3, 1, 0).reshape(9, C * K)
    return (_both_ways(weight) @ taps).view(36, C, K)


def _taps(grad: Tensor) -> Tensor:
    """Return the gradient [K, C, 3, 3] of weights from that of their factors [36, C, K]."""
    _, C, K = grad.shape
    taps = _both_ways(grad).t() @ grad.view(36, C * K)
    return taps.view(3, 3, C, K).permute(3, 2, 0, 1).contiguous()


def _both_ways(like: Tensor) -> Tensor:
    """Return the transform [36, 9] of rows and columns."""
    taps = like.new_tensor(_TAPS)
    return torch.kron(taps, taps)


def _check_arguments(x: Tensor, weight: Tensor) -> None:
    if x.dim() != 4 or weight.dim() != 4 or weight.shape[1:] != (x.shape[1], 3, 3):
        raise ValueError(
            f"x and weight must be [I, C, H, W] and [K, C, 3, 3], got {list(x.shape)} and "
            f"{list(weight.shape)}"
        )


@on_load
def _register() -> None:
    @torch.library.register_fake("opus::winograd_conv")
    def _(input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        size = (input.shape[0], weight.shape[2], *input.shape[2:])
        return input.new_empty(size).contiguous(memory_format=torch.channels_last)

    @torch.library.register_fake("opus::winograd_weight_grad")
    def _(input: Tensor, grad: Tensor) -> Tensor:
        return input.new_empty((36, input.shape[1], grad.shape[1]))
