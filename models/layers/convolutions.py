"""2-D convolutions with Winograd's algorithm on the CPU, and with folded batch norms.

Dimension letters: I images, C, K channels in and out, H, W size of an image.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from models import ops

# Smaller convolutions are faster in the library: the transforms of pixels do not depend on the
# number of channels on the other side, and those of weights do not depend on the number of pixels.
_LEAST_CHANNELS = 128
_LEAST_PIXELS = 2048


class FastConv2d(nn.Conv2d):
    """Convolution that uses Winograd's algorithm if it is faster.

    A batch norm behind it can be folded into it, see `models.detectors.norm_folding`.
    """

    #: The folded norm; in a tuple, so that it is not registered as a submodule.
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
    """Batch norm that is folded into the convolution before it while it is in eval mode."""

    @property
    def rests(self) -> bool:
        """Whether the norm is folded."""
        return not self.training

    def folded_into(self, weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor]:
        """Return weight `[K, C, h, w]` and bias `[K]` of the convolution followed by the norm.

        Both are differentiable in the parameters of the norm.
        """
        assert self.running_mean is not None and self.running_var is not None
        scale = torch.rsqrt(self.running_var + self.eps)
        if self.affine:
            scale = scale * self.weight
        shift = -self.running_mean if bias is None else bias - self.running_mean
        shift = shift * scale
        return weight * scale[:, None, None, None], shift + self.bias if self.affine else shift

    def forward(self, x: Tensor) -> Tensor:
        """Normalise `[I, K, H, W]`; returns it unchanged while the norm is folded."""
        return x if self.rests else super().forward(x)


def use_fast_convolutions(module: nn.Module) -> None:
    """Turn torch's convolutions below a module into `FastConv2d`, with the same parameters.

    Args:
        module: The module, changed in place.
    """
    for part in module.modules():
        if type(part) is nn.Conv2d:
            part.__class__ = FastConv2d
