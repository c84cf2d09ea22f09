"""Decoding of image files, whole or in part, at full or reduced size.

libjpeg-turbo through the native extension is preferred, then PyTurboJPEG, OpenCV and Pillow. Crops
that need not equal Pillow's are decoded and resized by the native operation `jpeg_crop`.
"""

from __future__ import annotations

import functools
import io
import logging
import warnings
from collections.abc import Callable
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch
from mmengine.logging import print_log

from loaders.errors import ImageBackendError, LoaderConfigError, WrongShapeError
from loaders.safe_reading import MIB, FileKind, read_file, reading, truncated
from models.ops.jpeg_crop import jpeg_crop
from models.ops.jpeg_window import has_jpeg_window, jpeg_window
from models.ops.resize_crop import Method

Backend = Literal["auto", "libjpeg", "turbojpeg", "cv2", "pillow"]
Image = npt.NDArray[np.uint8]
_Decoder = Callable[[bytes | bytearray, int], "Image | None"]
# First row or column and the one after the last, of the image at its reduced size.
Span = tuple[int, int]

_IMAGE_FILE = FileKind(
    "image",
    "complete the data set, or write the info file for the data you have with "
    "scripts/gen_sweep_info.py",
    "restore it from the original archive",
    max_bytes=64 * MIB,
)
# Formats that OpenCV and Pillow both decode, and whose header Pillow reads without a decoder.
_FORMATS = ("JPEG", "PNG", "BMP", "PPM", "WEBP", "TIFF")
# Maximum for images whose size is not in the config; 8K video has fewer.
_MAX_PIXELS = 1 << 25
# Maximum number of scans. A progressive JPEG has about ten; each is a pass over the whole image.
_MAX_SCANS = 200
_START_OF_SCAN = b"\xff\xda"

# libjpeg scales by these at almost no cost, by leaving out DCT coefficients.
REDUCTIONS = (8, 4, 2, 1)

_START_OF_IMAGE = b"\xff\xd8"
_END_OF_IMAGE = b"\xff\xd9"
_BASELINE_FRAME = 0xC0
# Tables of Huffman codes and quantisation, restart interval, application data, comment.
_SEGMENTS_BEFORE_FRAME = frozenset({0xC4, 0xDB, 0xDD, *range(0xE0, 0xF0), 0xFE})
# Some encoders pad files or append a few bytes; a truncated file has no end marker at all.
_TAIL_BYTES = 4096


def read_image(
    path: str,
    backend: Backend = "auto",
    reduction: int = 1,
    raw_hw: tuple[int, int] | None = None,
) -> Image:
    """Read an image file.

    Args:
        path: JPEG, PNG, BMP, PPM, WebP or TIFF.
        backend: Decoding library; 'auto' takes the fastest one that works here.
        reduction: 1, 2, 4 or 8; sizes are divided by it (rounded up).
        raw_hw: Height and width that the stored image must have, before any reduction.

    Returns:
        uint8 [H, W, 3], BGR.

    Raises:
        MissingDataError: If the file does not exist.
        WrongShapeError: If the image is not of the size `raw_hw`; it is not decoded then.
        BadDataError: If it is empty, truncated, not an image, or too large.
    """
    return decode_image(read_image_file(path), path, backend, reduction, raw_hw)


def read_image_file(path: str) -> bytearray:
    """Read an image file without decoding it.

    Raises:
        MissingDataError: If the file does not exist.
        BadDataError: If it cannot be read or is too large.
    """
    return read_file(path, _IMAGE_FILE)


def decode_image_part(
    data: bytes | bytearray,
    path: str,
    rows: Span,
    columns: Span,
    backend: Backend = "auto",
    reduction: int = 1,
    raw_hw: tuple[int, int] | None = None,
) -> tuple[Image, tuple[int, int]]:
    """Decode the part of an image that is needed, or more.

    Args:
        data: Content of an image file.
        path: Name of the image in errors.
        rows: First row and the one after the last, of the image at its reduced size.
        columns: Likewise.
        backend: Only 'libjpeg' decodes a part; the others return the whole image.
        reduction: 1, 2, 4 or 8.
        raw_hw: Height and width that the stored image must have.

    Returns:
        uint8 [h, w, 3] BGR, and its first row and column in the whole image.

    Raises:
        WrongShapeError: As `read_image`, as is the other.
        BadDataError: The content cannot be decoded.
    """
    _check_content(path, data, raw_hw)
    name = fastest_backend() if backend == "auto" else backend
    if name == "libjpeg" and data.startswith(_START_OF_IMAGE):
        found = jpeg_window(_as_tensor(data), reduction, rows, columns)
        if found is not None:
            return found[0].numpy(), found[1]
    return _decode(path, data, backend, reduction, raw_hw), (0, 0)


def decode_crop(
    data: bytes | bytearray,
    path: str,
    out: Image,
    full_hw: tuple[int, int],
    top: int,
    resized_hw: tuple[int, int],
    crop: tuple[int, int],
    flip: bool,
    method: Method,
    reduction: int = 1,
) -> bool:
    """Decode, resize and crop a JPEG file in one pass, if that is possible.

    A crop that leaves the image is black there.

    Args:
        data: Content of an image file.
        path: Name of the image in errors.
        out: uint8 [h, w, 3], written, BGR.
        full_hw: Height and width of the whole image.
        top: Rows of the whole image that the file lacks at its top.
        resized_hw: Height and width that the whole image is resized to.
        crop: First row and column of `out` in the resized image.
        flip: Whether to mirror `out` left-right.
        method: Filter of the resize, one of `models.ops.jpeg_crop.QUICK_METHODS`.
        reduction: 1, 2, 4 or 8: the file is decoded at that part of its size.

    Returns:
        Whether `out` was written. If not, use `decode_image_part`.

    Raises:
        WrongShapeError: As `read_image`, as is the other.
        BadDataError: The content cannot be decoded.
    """
    if not data.startswith(_START_OF_IMAGE):
        return False
    _check_content(path, data, (full_hw[0] - top, full_hw[1]))
    rows, columns = (
        slice(max(0, -first), min(length, size - first))
        for first, length, size in zip(crop, out.shape, resized_hw, strict=False)
    )
    if rows.start >= rows.stop or columns.start >= columns.stop:
        return False
    inside = (crop[0] + rows.start, crop[1] + columns.start)
    if flip:
        width = out.shape[1]
        columns = slice(width - columns.stop, width - columns.start)
    target = torch.from_numpy(out[rows, columns])
    if not jpeg_crop(
        target, _as_tensor(data), reduction, full_hw, top, resized_hw, inside, flip, method
    ):
        return False
    out[: rows.start] = out[rows.stop :] = 0
    out[rows, : columns.start] = out[rows, columns.stop :] = 0
    return True


def image_size(data: bytes | bytearray, name: str) -> tuple[int, int]:
    """Read height and width of an encoded image from its header.

    Args:
        data: Content of an image file.
        name: Name of the image in errors.

    Raises:
        BadDataError: If it is not an image, or has too many pixels.
    """
    with reading(name, _IMAGE_FILE, f"cannot be decoded ({len(data)} bytes)"):
        size, _ = _read_header(name, data)
    _check_size(name, size, None)
    return size


def decode_image(
    data: bytes | bytearray,
    path: str,
    backend: Backend = "auto",
    reduction: int = 1,
    raw_hw: tuple[int, int] | None = None,
) -> Image:
    """Decode the content of an image file.

    Args:
        data: Content.
        path: Name of the image in errors; the other arguments, the result and the errors are those
            of `read_image`.
        backend: Decoding library.
        reduction: 1, 2, 4 or 8.
        raw_hw: Height and width that the stored image must have.
    """
    _check_content(path, data, raw_hw)
    return _decode(path, data, backend, reduction, raw_hw)


def _as_tensor(data: bytes | bytearray) -> torch.Tensor:
    """Return the bytes of a file as uint8 [n], without a copy if they are writable."""
    writable = bytearray(data) if isinstance(data, bytes) else data
    return torch.frombuffer(writable, dtype=torch.uint8)


def _check_content(path: str, data: bytes | bytearray, raw_hw: tuple[int, int] | None) -> None:
    """Raise an error if a file is truncated, has no valid header, or has another size."""
    # OpenCV and TurboJPEG fill missing parts of a JPEG with grey and only warn on stderr.
    if data.startswith(_START_OF_IMAGE) and data.find(_END_OF_IMAGE, -_TAIL_BYTES) < 0:
        raise truncated(path, _IMAGE_FILE, f"{len(data)} bytes")
    with reading(path, _IMAGE_FILE, _broken(data)):
        size, is_progressive = _read_header(path, data)
    _check_size(path, size, raw_hw)
    if is_progressive and data.count(_START_OF_SCAN) > _MAX_SCANS:
        raise _IMAGE_FILE.broken(path, _broken(data))


def _decode(
    path: str,
    data: bytes | bytearray,
    backend: Backend,
    reduction: int,
    raw_hw: tuple[int, int] | None,
) -> Image:
    decode = _decoder(backend)
    with reading(path, _IMAGE_FILE, _broken(data)):
        image = decode(data, reduction)
    if image is None:
        raise _IMAGE_FILE.broken(path, _broken(data))
    if raw_hw is not None and image.shape[:2] != reduced_size(raw_hw, reduction):
        raise _IMAGE_FILE.broken(path, _broken(data))
    return image


def _broken(data: bytes | bytearray) -> str:
    return f"cannot be decoded ({len(data)} bytes)"


def reduced_size(size_hw: tuple[int, int], reduction: int) -> tuple[int, int]:
    """Return height and width of an image that is decoded at reduced size."""
    return -(-size_hw[0] // reduction), -(-size_hw[1] // reduction)


def _read_header(path: str, data: bytes | bytearray) -> tuple[tuple[int, int], bool]:
    """Return height and width of an image file, and whether it is a progressive JPEG.

    Errors of Pillow are passed on.
    """
    baseline = _baseline_jpeg_size(data)
    if baseline is not None:
        return baseline, False
    from PIL import Image as PilImage

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about large images, which the caller checks
        try:
            with PilImage.open(io.BytesIO(data), formats=_FORMATS) as file:
                return (file.height, file.width), bool(file.info.get("progressive"))
        except PilImage.DecompressionBombError:
            raise _too_large(path, "far too many") from None


def _baseline_jpeg_size(data: bytes | bytearray) -> tuple[int, int] | None:
    """Return height and width of a baseline JPEG, five times as fast as Pillow.

    Returns None for other files and for unusual segments before the frame header.
    """
    if not data.startswith(_START_OF_IMAGE):
        return None
    at = 2
    while at + 9 <= len(data) and data[at] == 0xFF:
        marker, length = data[at + 1], int.from_bytes(data[at + 2 : at + 4], "big")
        if marker == _BASELINE_FRAME:
            height = int.from_bytes(data[at + 5 : at + 7], "big")
            width = int.from_bytes(data[at + 7 : at + 9], "big")
            return (height, width) if height and width else None
        if marker not in _SEGMENTS_BEFORE_FRAME or length < 2:
            return None
        at += 2 + length
    return None


def _too_large(path: str, number: str) -> WrongShapeError:
    return WrongShapeError(
        f"image {path} has {number} pixels, more than {_MAX_PIXELS >> 20} million: "
        f"{_IMAGE_FILE.restore}"
    )


def _check_size(path: str, size: tuple[int, int], raw_hw: tuple[int, int] | None) -> None:
    """Raise an error if an image has another size than expected, or too many pixels."""
    if raw_hw is not None and size != tuple(raw_hw):
        raise WrongShapeError(
            f"image {path} has {size[0]} x {size[1]} pixels, expected {raw_hw[0]} x {raw_hw[1]}: "
            "set raw_hw in the config to the images' size"
        )
    if raw_hw is None and size[0] * size[1] > _MAX_PIXELS:
        raise _too_large(path, f"{size[0]} x {size[1]}")


@functools.cache
def notice_slow_backend(backend: Backend) -> None:
    """Log once per process how to get the fastest decoder, if 'auto' does not find it."""
    if backend == "auto" and fastest_backend() != "libjpeg":
        print_log(
            f"images are decoded with {fastest_backend()}: for faster loading install "
            "libjpeg-turbo's header (Debian and Ubuntu: apt install libjpeg-dev) and build the "
            "extension again (python setup.py build_ext --inplace --force)",
            logger="current",
            level=logging.INFO,
        )


@functools.cache
def _decoder(backend: Backend) -> _Decoder:
    """Return the decoding function; libraries load at the first use."""
    makers = _makers()
    if backend == "auto":
        return makers[fastest_backend()]()
    if backend not in makers:
        raise LoaderConfigError(
            f"image backend '{backend}' is unknown, use auto or one of {[*makers]}"
        )
    try:
        return makers[backend]()
    except Exception as error:
        raise ImageBackendError(
            f"image backend '{backend}' does not work here ({error}): install it (libjpeg needs "
            "the header of libjpeg-turbo when the extension is built, TurboJPEG the system library "
            "libturbojpeg0), or set backend='auto'"
        ) from error


def _makers() -> dict[str, Callable[[], _Decoder]]:
    """Return the libraries, the fastest first."""
    return {
        "libjpeg": _libjpeg_decoder,
        "turbojpeg": _turbojpeg_decoder,
        "cv2": _cv2_decoder,
        "pillow": _pillow_decoder,
    }


@functools.cache
def fastest_backend() -> str:
    """Return the fastest library that works here."""
    for name, make in _makers().items():
        try:
            make()
        except Exception:  # a missing or mismatched library can raise almost any exception
            continue
        return name
    raise AssertionError("Pillow is a dependency, so its decoder always works")


def _libjpeg_decoder() -> _Decoder:
    if not has_jpeg_window():
        raise OSError("the native extension found no libjpeg-turbo")
    other = _cv2_decoder()

    def decode(data: bytes | bytearray, reduction: int) -> Image | None:
        found = None
        if data.startswith(_START_OF_IMAGE):
            everything = (0, 1 << 20)
            found = jpeg_window(_as_tensor(data), reduction, everything, everything)
        # The other decoder reports damage, and reads other colour spaces.
        return other(data, reduction) if found is None else found[0].numpy()

    return decode


def _turbojpeg_decoder() -> _Decoder:
    import turbojpeg

    jpeg = turbojpeg.TurboJPEG()
    other = _cv2_decoder()

    def decode(data: bytes | bytearray, reduction: int) -> Image | None:
        if not data.startswith(_START_OF_IMAGE):
            return other(data, reduction)
        scale = None if reduction == 1 else (1, reduction)
        with warnings.catch_warnings():
            # It warns if it returns grey or nothing, and fails on unsupported colour spaces.
            # The other decoder is used then.
            warnings.simplefilter("error", UserWarning)
            try:
                image: Image = jpeg.decode(
                    data, pixel_format=turbojpeg.TJPF_BGR, scaling_factor=scale
                )
            except (UserWarning, OSError):
                return other(data, reduction)
        return image

    return decode


def _cv2_decoder() -> _Decoder:
    import cv2

    # The caller raises an error with the file's name instead of messages on stderr.
    cv2.setLogLevel(0)
    flags = {
        1: cv2.IMREAD_COLOR,
        2: cv2.IMREAD_REDUCED_COLOR_2,
        4: cv2.IMREAD_REDUCED_COLOR_4,
        8: cv2.IMREAD_REDUCED_COLOR_8,
    }

    def decode(data: bytes | bytearray, reduction: int) -> Image | None:
        if not data:
            return None
        # OpenCV rounds sizes down if it reduces other formats than JPEG.
        by_itself = reduction if data.startswith(_START_OF_IMAGE) else 1
        # Calibration refers to pixels as stored, so EXIF orientation is ignored.
        flag = flags[by_itself] | cv2.IMREAD_IGNORE_ORIENTATION
        image: Image | None = cv2.imdecode(np.frombuffer(data, dtype=np.uint8), flag)
        if image is not None and by_itself != reduction:
            h, w = reduced_size((image.shape[0], image.shape[1]), reduction)
            image = cv2.resize(image, (w, h), interpolation=cv2.INTER_AREA)
        return image

    return decode


def _pillow_decoder() -> _Decoder:
    from PIL import Image as PilImage

    def decode(data: bytes | bytearray, reduction: int) -> Image | None:
        with PilImage.open(io.BytesIO(data), formats=_FORMATS) as file:
            target = reduced_size(file.size, reduction)
            file.draft("RGB", target)
            pil: Any = file.convert("RGB")
            if pil.size != target:  # formats without reduced decoding
                pil = pil.resize(target, PilImage.Resampling.BOX)
            return np.ascontiguousarray(np.asarray(pil)[:, :, ::-1])

    return decode
