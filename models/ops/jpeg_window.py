"""Decoding of a window of a JPEG file with the system's libjpeg-turbo.

This is a binding of a library, so there is no reference implementation.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from ._extension import ExtensionError, native

__all__ = ["has_jpeg_window", "jpeg_window"]


def has_jpeg_window() -> bool:
    """Return whether the extension was built with libjpeg-turbo, and its library is installed."""
    try:
        return bool(native("jpeg_window_available")())
    except ExtensionError:
        return False


def jpeg_window(
    data: Tensor, reduction: int, rows: Sequence[int], columns: Sequence[int]
) -> tuple[Tensor, tuple[int, int]] | None:
    """Decode the pixels of a range of rows and columns.

    A JPEG file has no entry points, so all rows down to the last are parsed. Only the window is
    transformed. The result equals that part of the whole image.

    Args:
        data: uint8 `[n]`, the content of the file.
        reduction: 1, 2, 4 or 8: divisor of the image size, rounded up.
        rows: First row and the one after the last, in the reduced image.
        columns: The same for columns; the result has some additional columns on both sides.

    Returns:
        The pixels, uint8 `[h, w, 3]` BGR, and their first row and column. None if the library is
        missing, or if the file is damaged, progressive, or not in YCbCr or grey.

    Raises:
        ValueError: An argument is out of range.
        ExtensionError: The native extension is not built.
    """
    image, top, left = native("jpeg_window")(data, reduction, list(rows), list(columns))
    return (image, (top, left)) if image.numel() else None
