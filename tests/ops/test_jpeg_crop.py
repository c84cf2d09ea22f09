"""Crops of resized JPEG files against transforms and filters in double precision."""

from __future__ import annotations

import io
import math
import random
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from models.ops._extension import native
from models.ops.jpeg_crop import jpeg_crop
from models.ops.resize_crop import _weights

FULL = (96, 160)
# resized, crop (row, column), size of the output
CASES = [
    ((44, 73), (9, 4), (32, 64)),
    ((49, 88), (17, 0), (32, 88)),
    ((90, 150), (40, 20), (45, 57)),
]
SUBSAMPLING = {0: (1, 1), 1: (1, 2), 2: (2, 2)}  # Pillow's number to luma's blocks along y and x


def planes(size: tuple[int, int] = FULL, steps: tuple[int, int] = (1, 1)) -> np.ndarray:
    """Luma and chroma [3, H, W] of colours that exist; chroma constant in blocks of `steps`."""
    y, x = np.mgrid[: size[0], : size[1]]
    rng = np.random.default_rng(0)
    luma = 120 + 30 * np.sin(x / 5.0) + 20 * np.cos(y / 3.0) + rng.integers(-9, 10, size)
    v, u = (y // steps[0] * steps[0], x // steps[1] * steps[1])
    blue, red = 128 + 24 * np.sin(u / 9 + v / 7), 128 + 24 * np.cos(u / 8 - v / 11)
    return np.stack([luma, blue, red]).round().clip(0, 255)


def encoded(content: np.ndarray, **options: Any) -> Tensor:
    """JPEG file of luma and chroma, which are stored without another conversion."""
    parts = [Image.fromarray(part.astype(np.uint8)) for part in content]
    buffer = io.BytesIO()
    Image.merge("YCbCr", parts).save(buffer, "JPEG", **{"quality": 100, **options})
    return torch.frombuffer(bytearray(buffer.getvalue()), dtype=torch.uint8)


def basis(points: int) -> np.ndarray:
    """Cosines [points, 8] of a transform to `points` points; zero for higher frequencies."""
    u, x = np.arange(8), np.arange(points)
    matrix = 0.5 * np.cos((2 * x[:, None] + 1) * u * math.pi / (2 * points))
    matrix[:, 0] /= math.sqrt(2)
    matrix[:, points:] = 0
    return matrix


def reduced(plane: np.ndarray, points_y: int, points_x: int) -> np.ndarray:
    """Plane whose blocks of 8 x 8 pixels become `points_y` x `points_x`."""
    h, w = plane.shape
    blocks = plane.reshape(h // 8, 8, w // 8, 8)
    coefficients = np.einsum("iyjx,yv,xu->ivju", blocks, basis(8), basis(8))
    small = np.einsum("ivju,yv,xu->iyjx", coefficients, basis(points_y), basis(points_x))
    return small.reshape(h // 8 * points_y, w // 8 * points_x)


def expected(content: np.ndarray, subsampling: int, reduction: int, case, flip, method):
    resized, crop, size = case
    steps = SUBSAMPLING[subsampling]
    out = []
    for i, plane in enumerate(content):
        step = (1, 1) if i == 0 else steps
        plane = plane[:: step[0], :: step[1]]
        plane = reduced(plane, *(min(8, 8 // reduction * s) for s in step))
        rows, columns = (
            _weights(plane.shape[a], resized[a], crop[a], size[a], method == "linear").numpy()
            for a in range(2)
        )
        out.append(rows @ plane.clip(0, 255) @ (columns[::-1] if flip else columns).T)
    y, b, r = out[0], out[1] - 128, out[2] - 128
    colours = np.stack([y + 1.772 * b, y - 0.344136 * b - 0.714136 * r, y + 1.402 * r], -1)
    return colours.clip(0, 255)


def cropped(data: Tensor, reduction: int, case=CASES[0], flip=False, method="linear", **changes):
    resized, crop, size = case
    out = torch.full((*size, 3), 77, dtype=torch.uint8)
    arguments = dict(full=FULL, top=0, resized=resized, crop=crop, flip=flip, method=method)
    is_done = jpeg_crop(out, data, reduction, **{**arguments, **changes})  # type: ignore[arg-type]
    return out if is_done else None


@pytest.mark.parametrize("flip", [False, True])
@pytest.mark.parametrize("method", ["linear", "cubic"])
@pytest.mark.parametrize("reduction", [1, 2, 4, 8])
@pytest.mark.parametrize("subsampling", SUBSAMPLING)
def test_equals_transforms_in_double_precision(subsampling, reduction, method, flip) -> None:
    content = planes(steps=SUBSAMPLING[subsampling])
    data = encoded(content, subsampling=subsampling)
    for case in CASES:
        found = cropped(data, reduction, case, flip, method)
        assert found is not None
        apart = np.abs(
            found.numpy() - expected(content, subsampling, reduction, case, flip, method)
        )
        assert apart.max() < 5 and apart.mean() < 0.8


def test_close_to_a_decoded_and_resized_image() -> None:
    """Sizes that fill no whole block, and quantisation."""
    content = planes((203, 317))
    for subsampling, bound in ((0, 0.6), (2, 1.5)):
        data = encoded(content, subsampling=subsampling, quality=85)
        with Image.open(io.BytesIO(data.numpy().tobytes())) as file:
            whole = file.convert("RGB").resize((200, 128), Image.Resampling.BICUBIC)
        right = np.asarray(whole.crop((140, 78, 200, 128)))[:, :, ::-1].astype(int)
        case = ((128, 200), (78, 140), (50, 60))
        found = cropped(data, 1, case, method="cubic", full=(203, 317))
        assert found is not None and np.abs(found.numpy() - right).mean() < bound


@pytest.mark.parametrize("reduction", [1, 2])
@pytest.mark.parametrize(
    "options",
    [
        dict(restart_marker_rows=1),
        dict(restart_marker_blocks=7),
        dict(optimize=True),
        dict(comment=b"\xff\xd8 a comment"),
    ],
)
def test_way_of_storing_makes_no_difference(reduction: int, options: dict[str, Any]) -> None:
    plain = cropped(encoded(planes(), subsampling=2), reduction)
    other = cropped(encoded(planes(), subsampling=2, **options), reduction)
    assert plain is not None and other is not None and torch.equal(plain, other)


@pytest.mark.parametrize("reduction", [1, 2, 4, 8])
def test_file_without_its_upper_rows(reduction: int) -> None:
    case = ((44, 73), (22, 4), (22, 64))
    whole = cropped(encoded(planes(), subsampling=2), reduction, case)
    lower = encoded(planes()[:, 32:], subsampling=2)
    part = cropped(lower, reduction, case, top=32)
    assert whole is not None and part is not None and torch.equal(whole, part)
    # Missing rows are not invented.
    assert cropped(lower, reduction, CASES[0], top=32) is None


def test_views_of_larger_images() -> None:
    target = torch.full((40, 90, 3), 9, dtype=torch.uint8)
    data = encoded(planes())
    plain = cropped(data, 2)
    resized, crop, _ = CASES[0]
    assert jpeg_crop(target[3:35, 5:69], data, 2, FULL, 0, resized, crop)
    assert plain is not None and torch.equal(target[3:35, 5:69], plain)
    target[3:35, 5:69] = 9
    assert (target == 9).all()


def test_what_it_declines() -> None:
    data = encoded(planes())
    assert cropped(data, 2) is not None
    picture = Image.fromarray(planes()[0].astype(np.uint8))
    others = [encoded(planes(), progressive=True)]
    for mode in ("L", "CMYK"):
        buffer = io.BytesIO()
        picture.convert(mode).save(buffer, "JPEG")
        others.append(torch.frombuffer(bytearray(buffer.getvalue()), dtype=torch.uint8))
    others += [torch.zeros(n, dtype=torch.uint8) for n in (0, 3, 99)]
    others += [data[: len(data) * part // 8].clone() for part in range(8)]
    for other in others:
        assert cropped(other, 2) is None
    assert cropped(data, 2, full=(96, 152)) is None
    for crop in ((-1, 4), (9, -1), (13, 4), (9, 10)):
        assert cropped(data, 2, crop=crop) is None


def test_damage_anywhere_ends_in_an_image_or_none() -> None:
    rng = random.Random(0)
    files = [
        encoded(planes((48, 64)), quality=q, subsampling=s, **options)
        for q, s, options in ((90, 2, {}), (60, 1, dict(restart_marker_rows=1)), (100, 0, {}))
    ]
    case = ((30, 40), (10, 4), (20, 32))
    done = 0
    for turn in range(1500):
        data = files[turn % 3].clone()
        # The header is short, so it gets as many changes as the rest.
        end = 700 if turn % 2 else len(data)
        for _ in range(rng.choice((1, 3, 20))):
            data[rng.randrange(2, min(end, len(data)))] = rng.randrange(256)
        found = cropped(data, rng.choice((1, 2, 4, 8)), case, full=(48, 64))
        done += found is not None
    assert 0 < done < 1500


def test_portable_loops_give_the_same_bytes(run_in_new_process: Callable[..., None]) -> None:
    code = (
        "import torch\n"
        "from tests.ops.test_jpeg_crop import checksums\n"
        "assert checksums() == {}, checksums()\n"
    )
    run_in_new_process(code.format(checksums()), OPUS_DISABLE_AVX2="1")


def checksums() -> list[int]:
    """Return one number for every kind of transform, filter and width."""
    sums = []
    for subsampling in SUBSAMPLING:
        data = encoded(planes(), subsampling=subsampling)
        for reduction in (1, 2, 4, 8):
            for case, method in zip(CASES, ("linear", "cubic", "cubic"), strict=True):
                found = cropped(data, reduction, case, True, method)
                assert found is not None
                weights = torch.arange(found.numel()).remainder(8191)
                sums.append(int((found.flatten().long() * weights).sum()))
    return sums


@pytest.mark.parametrize(
    "change",
    [
        {"data": torch.zeros(4)},
        {"data": torch.zeros(8, dtype=torch.uint8)[::2]},
        {"out": torch.zeros(8, 9, 4, dtype=torch.uint8)},
        {"out": torch.zeros(0, 9, 3, dtype=torch.uint8)},
        {"out": torch.zeros(8, 3, 9, dtype=torch.uint8).permute(0, 2, 1)},
        {"reduction": 3},
        {"full": [96]},
        {"full": [0, 160]},
        {"full": [2**40, 160]},
        {"top": 96},
        {"top": -1},
        {"resized": [0, 73]},
        {"crop": [2**40, 0]},
        {"method": 2},
    ],
)
def test_wrong_arguments_are_refused(change: dict[str, Any]) -> None:
    arguments = dict(
        out=torch.zeros(8, 9, 3, dtype=torch.uint8),
        data=torch.zeros(9, dtype=torch.uint8),
        reduction=2,
        full=[96, 160],
        top=0,
        resized=[44, 73],
        crop=[0, 0],
        flip=False,
        method=0,
    )
    with pytest.raises((ValueError, RuntimeError)):
        native("jpeg_crop")(**{**arguments, **change})


def test_exact_method_is_refused() -> None:
    with pytest.raises(ValueError, match="method must be one of linear, cubic"):
        cropped(encoded(planes()), 1, method="exact")
