"""A crop of a resized JPEG file, decoded at the size that the resize needs.

This reads a file format, so there is no reference implementation in torch. The tests compare it
with transforms in double precision.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from ._extension import native
from .resize_crop import Method

__all__ = ["QUICK_METHODS", "jpeg_crop"]

#: Filters that are available, in the order of the native operation.
QUICK_METHODS: tuple[Method, ...] = ("linear", "cubic")


def jpeg_crop(
    out: Tensor,
    data: Tensor,
    reduction: int,
    full: Sequence[int],
    top: int,
    resized: Sequence[int],
    crop: Sequence[int],
    flip: bool = False,
    method: Method = "linear",
) -> bool:
    """Decode a JPEG file, resize it, crop it and mirror it.

    Luma and chroma are resized before they become colours. Only blocks that the crop depends on
    are transformed, to `8 / reduction` pixels by side. Chroma that is stored at half of luma's size
    is transformed to twice as many, at most eight. The result differs from a resize of the decoded
    image by a few grey values.

    Args:
        out: uint8 `[h, w, 3]` on the CPU, whole rows, BGR; written.
        data: uint8 `[n]`, the file.
        reduction: 1, 2, 4 or 8: the file is decoded at that part of its size.
        full: Height and width of the full image.
        top: Rows of the full image that the file lacks at its top.
        resized: Height and width that the full image is resized to.
        crop: Row and column of the resized image where `out` begins.
        flip: Whether to mirror `out` left-right.
        method: "linear" or "cubic", see :func:`models.ops.resize_crop`.

    Returns:
        Whether `out` was written. False if the file is damaged, progressive, of another size, has
        other colours than YCbCr or another sampling of chroma than full or half, or if the crop
        leaves the image: use another decoder then.

    Raises:
        ValueError: An argument is out of range.
        ExtensionError: The native extension is not built.
    """
    if method not in QUICK_METHODS:
        raise ValueError(f"method must be one of {', '.join(QUICK_METHODS)}, got {method!r}")
    number = QUICK_METHODS.index(method)
    run = native("jpeg_crop")
    return bool(run(out, data, reduction, full, top, resized, crop, flip, number))
