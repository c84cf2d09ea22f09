"""Bicubic resize of a crop against Pillow, the reference, and cases made by hand."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from models.ops import resize_crop, resize_crop_reference, resize_window
from models.ops._extension import native

IMPLEMENTATIONS = [resize_crop, resize_crop_reference]
# full, resized, crop (row, column), size of the output: all of (height, width)
CASES = [
    ((90, 160), (41, 73), (9, 4), (32, 64)),  # smaller, as in training
    ((90, 160), (41, 73), (-3, -5), (50, 90)),  # black all around
    ((90, 160), (90, 160), (7, 11), (20, 33)),  # the same size
    ((30, 40), (45, 61), (1, 2), (44, 57)),  # larger
    ((90, 160), (9, 7), (2, 0), (7, 7)),  # much smaller, many taps
    ((5, 3), (1, 1), (0, 0), (1, 1)),
    ((1, 1), (3, 4), (0, 0), (3, 4)),
    ((90, 160), (41, 73), (200, 0), (5, 6)),  # outside
]


def noise(size: tuple[int, int], seed: int = 0) -> Tensor:
    """Return black and white pixels, which test the clamping between the passes."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 2, (*size, 3), generator=generator).mul(255).to(torch.uint8)


def by_pillow(
    image: Tensor,
    resized: tuple[int, int],
    crop: tuple[int, int],
    size: tuple[int, int],
    flip: bool = False,
    filter_: Image.Resampling = Image.Resampling.BICUBIC,
) -> Tensor:
    pillow = Image.fromarray(image.numpy()).resize(resized[::-1], filter_)
    pillow = pillow.crop((crop[1], crop[0], crop[1] + size[1], crop[0] + size[0]))
    if flip:
        pillow = pillow.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    return torch.from_numpy(np.array(pillow))


def largest_difference(a: Tensor, b: Tensor) -> int:
    return int((a.int() - b.int()).abs().max())


@pytest.mark.parametrize("function", IMPLEMENTATIONS)
@pytest.mark.parametrize("flip", [False, True])
@pytest.mark.parametrize(("full", "resized", "crop", "size"), CASES)
def test_equals_pillow(function: Callable, flip: bool, full, resized, crop, size) -> None:
    image = noise(full)
    out = torch.full((*size, 3), 77, dtype=torch.uint8)
    assert function(out, image, full, (0, 0), resized, crop, flip) is out
    expected = by_pillow(image, resized, crop, size, flip)
    assert largest_difference(out, expected) <= (function is resize_crop_reference)


@pytest.mark.parametrize("function", IMPLEMENTATIONS)
@pytest.mark.parametrize(("full", "resized", "crop", "size"), CASES)
def test_quick_methods_are_close_to_pillow(function, full, resized, crop, size) -> None:
    image = noise(full)
    for method, filter_ in (
        ("cubic", Image.Resampling.BICUBIC),
        ("linear", Image.Resampling.BILINEAR),
    ):
        out = torch.full((*size, 3), 77, dtype=torch.uint8)
        function(out, image, full, (0, 0), resized, crop, False, method)
        assert largest_difference(out, by_pillow(image, resized, crop, size, False, filter_)) <= 2


def test_columns_of_one_value_are_exact() -> None:
    """All rows are rounded equally, so that small errors of the first pass would add up."""
    generator = torch.Generator().manual_seed(0)
    row = torch.randint(0, 256, (1, 1600, 3), generator=generator)
    image = row.expand(300, -1, -1).to(torch.uint8).contiguous()
    for resized in ((125, 667), (140, 744), (155, 826)):
        out = torch.empty(*resized, 3, dtype=torch.uint8)
        resize_crop(out, image, (300, 1600), (0, 0), resized, (0, 0))
        assert torch.equal(out, by_pillow(image, resized, (0, 0), resized))


@pytest.mark.parametrize("function", IMPLEMENTATIONS)
@pytest.mark.parametrize(("full", "resized", "crop", "size"), CASES[:5])
def test_part_of_the_image_suffices(function: Callable, full, resized, crop, size) -> None:
    image = noise(full, seed=1)
    whole, part = torch.empty(2, *size, 3, dtype=torch.uint8)
    resize_crop(whole, image, full, (0, 0), resized, crop)
    (top, bottom), (left, right) = (
        resize_window(full[axis], resized[axis], crop[axis], size[axis]) for axis in (0, 1)
    )
    window = image[top:bottom, left:right].contiguous()
    function(part, window, full, (top, left), resized, crop)
    assert largest_difference(whole, part) <= (function is resize_crop_reference)
    # One row or column less is rejected: nothing is read outside of the window.
    for less, offset in (
        (window[1:], (top + 1, left)),
        (window[:-1], (top, left)),
        (window[:, 1:].contiguous(), (top, left + 1)),
        (window[:, :-1].contiguous(), (top, left)),
    ):
        if less.numel():
            with pytest.raises(ValueError, match="must hold the pixels"):
                function(part, less, full, offset, resized, crop)


@pytest.mark.parametrize("function", IMPLEMENTATIONS)
@pytest.mark.parametrize("method", ["linear", "cubic", "exact"])
def test_flat_areas_keep_their_value(function: Callable, method: str) -> None:
    for value in (0, 1, 128, 255):
        image = torch.full((64, 900, 3), value, dtype=torch.uint8)
        for resized in ((64, 900), (3, 7), (70, 901)):
            out = torch.empty(*resized, 3, dtype=torch.uint8)
            assert (
                function(out, image, (64, 900), (0, 0), resized, (0, 0), False, method) == value
            ).all()


def test_views_of_larger_images() -> None:
    """Rows are strided in image and output; the memory between them does not change."""
    canvas, target = noise((60, 100)), torch.full((40, 70, 3), 9, dtype=torch.uint8)
    image, out = canvas[5:50, 10:90], target[3:30, 4:44]
    resize_crop(out, image, (45, 80), (0, 0), (30, 50), (2, 5))
    plain = torch.empty(27, 40, 3, dtype=torch.uint8)
    resize_crop(plain, image.contiguous(), (45, 80), (0, 0), (30, 50), (2, 5))
    assert torch.equal(out, plain)
    target[3:30, 4:44] = 9
    assert (target == 9).all()


@pytest.mark.parametrize("method", ["linear", "cubic", "exact"])
def test_portable_loops_give_the_same_bytes(
    method: str, run_in_new_process: Callable[..., None]
) -> None:
    code = (
        "import torch, sys\n"
        "from models.ops import resize_crop\n"
        "g = torch.Generator().manual_seed(3)\n"
        "image = torch.randint(0, 256, (90, 161, 3), generator=g, dtype=torch.uint8)\n"
        "out = torch.empty(37, 71, 3, dtype=torch.uint8)\n"
        "resize_crop(out, image, (90, 161), (0, 0), (41, 77), (3, 5), True, 'METHOD')\n"
        "weights = torch.arange(out.numel()).remainder(8191)\n"
        "assert int((out.flatten().long() * weights).sum()) == {}\n"
    )
    generator = torch.Generator().manual_seed(3)
    image = torch.randint(0, 256, (90, 161, 3), generator=generator, dtype=torch.uint8)
    out = torch.empty(37, 71, 3, dtype=torch.uint8)
    resize_crop(out, image, (90, 161), (0, 0), (41, 77), (3, 5), True, method)
    weights = torch.arange(out.numel()).remainder(8191)
    run_in_new_process(
        code.replace("METHOD", method).format(int((out.flatten().long() * weights).sum())),
        OPUS_DISABLE_AVX2="1",
    )


@pytest.mark.parametrize(
    "change",
    [
        {"image": torch.zeros(90, 160, 4, dtype=torch.uint8)},
        {"image": torch.zeros(90, 160, 3)},
        {"image": torch.zeros(90, 3, 160, dtype=torch.uint8).permute(0, 2, 1)},
        {"out": torch.zeros(0, 5, 3, dtype=torch.uint8)},
        {"full": (80, 160)},
        {"full": (90, 160, 3)},
        {"offset": (-1, 0)},
        {"resized": (0, 10)},
        {"resized": (2**40, 10)},
        {"crop": (2**40, 0)},
        {"image": torch.zeros(600, 1, 3, dtype=torch.uint8), "full": (600, 1), "resized": (1, 1)},
    ],
)
def test_wrong_arguments_are_refused(change: dict) -> None:
    arguments = dict(
        out=torch.zeros(20, 30, 3, dtype=torch.uint8),
        image=torch.zeros(90, 160, 3, dtype=torch.uint8),
        full=(90, 160),
        offset=(0, 0),
        resized=(45, 80),
        crop=(0, 0),
    )
    with pytest.raises((ValueError, RuntimeError)):
        native("resize_crop")(**{**arguments, **change}, flip=False, method=2)


def test_schema_and_fake() -> None:
    out, image = torch.zeros(8, 9, 3, dtype=torch.uint8), noise((20, 30))
    torch.library.opcheck(
        torch.ops.opus.resize_crop.default,
        (out, image, [20, 30], [0, 0], [10, 15], [1, 2], False, 2),
        test_utils=("test_schema", "test_faketensor"),
    )
