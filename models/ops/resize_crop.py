"""Resizing and cropping of 8-bit images in one step.

Dimensions:
    H, W stored image or part of it; h, w output.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from ._extension import native, on_load, runs_natively

__all__ = ["resize_crop", "resize_crop_reference", "resize_window"]

Method = Literal["linear", "cubic", "exact"]
_METHODS = ("linear", "cubic", "exact")  # in the order of the native operation
_SUPPORT = 2.0  # radius of the cubic kernel, in pixels of the coarser image
_LINEAR_SUPPORT = 1.0


def resize_crop(
    out: Tensor,
    image: Tensor,
    full: Sequence[int],
    offset: Sequence[int],
    resized: Sequence[int],
    crop: Sequence[int],
    flip: bool = False,
    method: Method = "exact",
) -> Tensor:
    """Resize, crop and optionally mirror an image into `out`.

    Equals Pillow's ``resize``, followed by its ``crop`` and flip. Only pixels that the crop keeps
    are computed, so the image may be a part of the full one, see :func:`resize_window`.

    Args:
        out: uint8 ``[h, w, 3]`` on the CPU with contiguous rows; written.
        image: uint8 ``[H, W, 3]`` on the CPU with contiguous rows; any order of channels.
        full: Height and width of the full image.
        offset: Row and column of the full image where ``image`` begins.
        resized: Height and width that the full image is resized to.
        crop: Row and column of the resized image where ``out`` begins. Pixels outside of the
            resized image are 0.
        flip: Whether to mirror ``out`` left-right.
        method: "exact" gives the same bytes as Pillow's bicubic filter. "cubic" is faster, with
            16-bit weights, and differs by at most two grey values. "linear" is Pillow's bilinear
            filter with 16-bit weights.

    Returns:
        ``out``.

    Raises:
        ValueError: A shape or dtype does not fit, a side shrinks by more than 256, or ``image``
            lacks pixels.
        ExtensionError: The native extension is not built.
    """
    if not runs_natively("resize_crop", image):
        return resize_crop_reference(out, image, full, offset, resized, crop, flip, method)
    number = _METHODS.index(method)
    native("resize_crop")(out, image, full, offset, resized, crop, flip, number)
    return out


def resize_crop_reference(
    out: Tensor,
    image: Tensor,
    full: Sequence[int],
    offset: Sequence[int],
    resized: Sequence[int],
    crop: Sequence[int],
    flip: bool = False,
    method: Method = "exact",
) -> Tensor:
    """Compute :func:`resize_crop` in plain torch (reference implementation)."""
    size = out.shape[:2]
    for axis in range(2):
        low, high = resize_window(full[axis], resized[axis], crop[axis], size[axis])
        end = offset[axis] + image.shape[axis]
        if low < high and not (offset[axis] <= low and high <= end):
            raise ValueError(
                f"image must hold the pixels from {low} to {high} of axis {axis}, it has "
                f"{offset[axis]} to {end}"
            )
    is_linear = method == "linear"
    rows, columns = (_weights(full[a], resized[a], crop[a], size[a], is_linear) for a in range(2))
    if flip:
        columns = columns.flip(0)
    rows = rows[:, offset[0] : offset[0] + image.shape[0]]
    columns = columns[:, offset[1] : offset[1] + image.shape[1]]
    along_x = torch.einsum("hwc,ow->hoc", image.double(), columns)
    along_x = along_x.add(0.5).floor().clamp(0, 255)
    both = torch.einsum("hoc,ih->ioc", along_x, rows)
    return out.copy_(both.add(0.5).floor().clamp(0, 255))


def resize_window(full: int, resized: int, crop: int, size: int) -> tuple[int, int]:
    """Return the range of input pixels along an axis that a crop of the resized image needs.

    Args:
        full: Number of pixels before resizing.
        resized: Number of pixels after resizing.
        crop: First pixel of the crop, may be negative.
        size: Number of pixels of the crop.

    Returns:
        First pixel and the one after the last; equal if the crop lies outside the image.
    """
    first, last = max(crop, 0), min(crop + size, resized) - 1
    if last < first:
        return 0, 0
    scale = full / resized
    support = _SUPPORT * max(scale, 1.0)
    low, high = (first + 0.5) * scale - support, (last + 0.5) * scale + support
    return max(0, int(low + 0.5)), min(full, int(high + 0.5))


def _weights(full: int, resized: int, crop: int, size: int, is_linear: bool) -> Tensor:
    """Return the weights ``[size, full]`` of an axis, as Pillow computes them."""
    scale = full / resized
    stretch = max(scale, 1.0)
    matrix = torch.zeros(size, full, dtype=torch.float64)
    for i in range(size):
        low, high = resize_window(full, resized, crop + i, 1)
        if high <= low:
            continue
        centre = (crop + i + 0.5) * scale
        x = (torch.arange(low, high, dtype=torch.float64) - centre + 0.5).abs() / stretch
        near = (1.5 * x - 2.5) * x * x + 1
        far = ((-0.5 * x + 2.5) * x - 4) * x + 2
        weight = torch.where(x < 1, near, torch.where(x < _SUPPORT, far, 0.0))
        if is_linear:
            weight = (_LINEAR_SUPPORT - x).clamp(min=0)
        matrix[i, low:high] = weight / weight.sum()
    return matrix


@on_load
def _register() -> None:
    @torch.library.register_fake("opus::resize_crop")
    def _(
        out: Tensor,
        image: Tensor,
        full: Sequence[int],
        offset: Sequence[int],
        resized: Sequence[int],
        crop: Sequence[int],
        flip: bool,
        method: int,
    ) -> None:
        return None
