"""2-D convolutions that are faster than the library's where they can be.

Dimension letters: I images, C, K channels in and out, H, W size of an image.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from models import ops

# Winograd's algorithm pays from here on: its transforms cost as much for few channels as for many,
# and that of the weights as much for few pixels as for many.
_LEAST_CHANNELS = 128
_LEAST_PIXELS = 2048


class FastConv2d(nn.Conv2d):
    """A convolution that goes through Winograd's algorithm where that pays.

    It can also do the work of the batch norm behind it, see `models.detectors.norm_folding`.
    """

    #: The norm whose work this does while it rests; in a tuple, so that it is no submodule.
    norms: tuple[RestingNorm2d, ...] = ()

    def _conv_forward(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        for norm in self.norms:
            if norm.rests:
                weight, bias = norm.folded_into(weight, bias)
        if self._is_winograd(x):
            return ops.winograd_conv(x, weight, bias)
        return super()._conv_forward(x, weight, bias)

    def _is_winograd(self, x: Tensor) -> bool:
        is_common = (
            self.kernel_size == (3, 3)
            and self.stride == self.padding == self.dilation == (1, 1)
            and self.groups == 1
            and self.padding_mode == "zeros"
            and min(self.in_channels, self.out_channels) >= _LEAST_CHANNELS
        )
        if not is_common or x.device.type != "cpu" or x.dim() != 4:
            return False
        return len(x) * x.shape[2] * x.shape[3] >= _LEAST_PIXELS


class RestingNorm2d(nn.BatchNorm2d):
    """A batch norm whose work the convolution before it does, while it is in eval mode."""

    @property
    def rests(self) -> bool:
        """Whether the convolution does the norm's work."""
        return not self.training

    def folded_into(self, weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor]:
        """Return weight `[K, C, h, w]` and bias `[K]` of the convolution and the norm together.

        Gradients reach the norm's parameters through them.
        """
        assert self.running_mean is not None and self.running_var is not None
        scale = torch.rsqrt(self.running_var + self.eps)
        if self.affine:
            scale = scale * self.weight
        shift = -self.running_mean if bias is None else bias - self.running_mean
        shift = shift * scale
        return weight * scale[:, None, None, None], shift + self.bias if self.affine else shift

    def forward(self, x: Tensor) -> Tensor:
        """Return `[I, K, H, W]`, as it is while the norm rests."""
        return x if self.rests else super().forward(x)


def use_fast_convolutions(module: nn.Module) -> None:
    """Make torch's convolutions below a module fast; parameters and their names stay.

    Args:
        module: The module, changed in place.
    """
    for part in module.modules():
        if type(part) is nn.Conv2d:
            part.__class__ = FastConv2d
