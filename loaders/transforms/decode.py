"""Decoding image files: PyTurboJPEG, else OpenCV, else Pillow; at full or reduced size."""

from __future__ import annotations

import functools
import io
import logging
import warnings
from collections.abc import Callable
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from mmengine.logging import print_log

from loaders.errors import (
    BadDataError,
    ImageBackendError,
    LoaderConfigError,
    MissingDataError,
    TruncatedDataError,
)

Backend = Literal["auto", "turbojpeg", "cv2", "pillow"]
Image = npt.NDArray[np.uint8]
_Decoder = Callable[[bytes, int], "Image | None"]

# libjpeg scales by these for nearly nothing, by leaving out DCT coefficients.
REDUCTIONS = (8, 4, 2, 1)

_START_OF_IMAGE = b"\xff\xd8"
_END_OF_IMAGE = b"\xff\xd9"
# Some encoders pad files or append a few bytes; a truncated file has no end marker at all.
_TAIL_BYTES = 4096


def read_image(path: str, backend: Backend = "auto", reduction: int = 1) -> Image:
    """Reads an image file.

    Args:
        path: JPEG (or, with cv2 and Pillow, any format they know).
        backend: Which library decodes; 'auto' takes the fastest one that works here.
        reduction: 1, 2, 4 or 8; sizes shrink by it (rounded up).

    Returns:
        uint8 [H, W, 3], BGR.

    Raises:
        MissingDataError: If the file does not exist.
        BadDataError: If it is empty, truncated or no image.
    """
    decode = _decoder(backend)
    try:
        with open(path, "rb") as file:
            data = file.read()
    except FileNotFoundError:
        raise MissingDataError(
            f"image {path} does not exist: complete the data set, or write the info file for the "
            "data you have with scripts/gen_sweep_info.py"
        ) from None
    # OpenCV and TurboJPEG fill what is missing of a JPEG with grey and only warn on stderr, so
    # truncation is looked for here, before any of them.
    if data.startswith(_START_OF_IMAGE) and data.find(_END_OF_IMAGE, -_TAIL_BYTES) < 0:
        raise TruncatedDataError(
            f"image {path} is truncated ({len(data)} bytes): restore it from the original archive"
        )
    try:
        image = decode(data, reduction)
    except (OSError, ValueError, SyntaxError) as error:  # Pillow raises all three
        raise BadDataError(_broken(path, data)) from error
    if image is None:
        raise BadDataError(_broken(path, data))
    return image


@functools.cache
def notice_slow_backend(backend: Backend) -> None:
    """Says once per process if 'auto' does not get the fastest decoder, and how to."""
    if backend == "auto" and fastest_backend() != "turbojpeg":
        print_log(
            f"images are decoded with {fastest_backend()}: for faster loading install libturbojpeg "
            "(Debian and Ubuntu: apt install libturbojpeg0)",
            logger="current",
            level=logging.INFO,
        )


def _broken(path: str, data: bytes) -> str:
    return (
        f"image {path} cannot be decoded ({len(data)} bytes): restore it from the original archive"
    )


@functools.cache
def _decoder(backend: Backend) -> _Decoder:
    """Returns the decoding function; libraries load at the first use."""
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
            f"image backend '{backend}' does not work here ({error}): install it (TurboJPEG needs "
            "the system library libturbojpeg0 too), or set backend='auto'"
        ) from error


def _makers() -> dict[str, Callable[[], _Decoder]]:
    """Returns the libraries, the fastest first."""
    return {"turbojpeg": _turbojpeg_decoder, "cv2": _cv2_decoder, "pillow": _pillow_decoder}


@functools.cache
def fastest_backend() -> str:
    """Returns the fastest library that works here."""
    for name, make in _makers().items():
        try:
            make()
        except Exception:  # a missing or mismatched library shows as nearly any exception
            continue
        return name
    raise AssertionError("Pillow is a dependency, so its decoder always works")


def _turbojpeg_decoder() -> _Decoder:
    import turbojpeg

    jpeg = turbojpeg.TurboJPEG()
    other = _cv2_decoder()

    def decode(data: bytes, reduction: int) -> Image | None:
        if not data.startswith(_START_OF_IMAGE):
            return other(data, reduction)
        scale = None if reduction == 1 else (1, reduction)
        with warnings.catch_warnings():
            # It warns where it returns grey or nothing; the other decoder then judges.
            warnings.simplefilter("error", UserWarning)
            try:
                image: Image = jpeg.decode(
                    data, pixel_format=turbojpeg.TJPF_BGR, scaling_factor=scale
                )
            except UserWarning:
                return other(data, reduction)
        return image

    return decode


def _cv2_decoder() -> _Decoder:
    import cv2

    flags = {
        1: cv2.IMREAD_COLOR,
        2: cv2.IMREAD_REDUCED_COLOR_2,
        4: cv2.IMREAD_REDUCED_COLOR_4,
        8: cv2.IMREAD_REDUCED_COLOR_8,
    }

    def decode(data: bytes, reduction: int) -> Image | None:
        if not data:
            return None
        # Calibration refers to pixels as stored, so EXIF orientation is ignored.
        flag = flags[reduction] | cv2.IMREAD_IGNORE_ORIENTATION
        try:
            image: Image | None = cv2.imdecode(np.frombuffer(data, dtype=np.uint8), flag)
        except cv2.error:
            return None
        return image

    return decode


def _pillow_decoder() -> _Decoder:
    from PIL import Image as PilImage

    def decode(data: bytes, reduction: int) -> Image | None:
        with PilImage.open(io.BytesIO(data)) as file:
            target = tuple(-(-size // reduction) for size in file.size)
            file.draft("RGB", target)
            pil: Any = file.convert("RGB")
            if pil.size != target:  # formats without reduced decoding
                pil = pil.resize(target, PilImage.Resampling.BOX)
            return np.ascontiguousarray(np.asarray(pil)[:, :, ::-1])

    return decode
