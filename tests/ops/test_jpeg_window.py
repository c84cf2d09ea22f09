"""Windows of JPEG files against Pillow's decoder."""

from __future__ import annotations

import io
import random
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from models.ops._extension import native
from models.ops.jpeg_window import has_jpeg_window, jpeg_window

needs_library = pytest.mark.skipif(not has_jpeg_window(), reason="no libjpeg-turbo here")


def picture(height: int = 203, width: int = 317) -> Image.Image:
    y, x = np.mgrid[:height, :width]
    colours = np.stack([x % 97 * 2, y % 61 * 4, (x * y) % 251], -1)
    return Image.fromarray(colours.astype(np.uint8))


def encoded(image: Image.Image, **options: Any) -> Tensor:
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", **{"quality": 90, **options})
    return torch.frombuffer(bytearray(buffer.getvalue()), dtype=torch.uint8)


def by_pillow(data: Tensor) -> np.ndarray:
    with Image.open(io.BytesIO(data.numpy().tobytes())) as file:
        return np.asarray(file.convert("RGB"))[:, :, ::-1]


@needs_library
@pytest.mark.parametrize("subsampling", [0, 1, 2])
@pytest.mark.parametrize("restart", [0, 1])
def test_equals_that_part_of_the_image(subsampling: int, restart: int) -> None:
    data = encoded(picture(), subsampling=subsampling, restart_marker_rows=restart)
    whole = by_pillow(data)
    rng = random.Random(0)
    for _ in range(25):
        rows = sorted(rng.sample(range(204), 2))
        columns = sorted(rng.sample(range(318), 2))
        found = jpeg_window(data, 1, rows, columns)
        assert found is not None
        image, (top, left) = found
        h, w = image.shape[:2]
        assert (top, h) == (rows[0], rows[1] - rows[0])
        assert left <= columns[0] and left + w >= columns[1] and w <= columns[1] - columns[0] + 64
        first, last = columns[0] - left, columns[1] - left
        expected = whole[rows[0] : rows[1], columns[0] : columns[1]].astype(int)
        assert np.abs(image.numpy()[:, first:last] - expected).max() <= 1


@needs_library
@pytest.mark.parametrize("reduction", [2, 4, 8])
def test_reduced_window_is_a_part_of_the_reduced_image(reduction: int) -> None:
    data = encoded(picture())
    everything = jpeg_window(data, reduction, (0, 999), (0, 999))
    assert everything is not None and everything[1] == (0, 0)
    whole = everything[0]
    assert whole.shape == (-(-203 // reduction), -(-317 // reduction), 3)
    found = jpeg_window(data, reduction, (3, 20), (9, 30))
    assert found is not None
    image, (top, left) = found
    expected = whole[top : top + len(image), left : left + image.shape[1]]
    assert torch.equal(image[:, 9 - left : 30 - left], expected[:, 9 - left : 30 - left])


@needs_library
def test_what_it_declines() -> None:
    """Other decoders read these files."""
    rows = columns = (0, 50)
    assert jpeg_window(encoded(picture(), progressive=True), 1, rows, columns) is None
    assert jpeg_window(encoded(picture().convert("CMYK")), 1, rows, columns) is None
    assert jpeg_window(torch.zeros(0, dtype=torch.uint8), 1, rows, columns) is None
    assert jpeg_window(torch.zeros(99, dtype=torch.uint8), 1, rows, columns) is None
    data = encoded(picture())
    assert jpeg_window(data[: len(data) // 2].clone(), 1, (0, 203), columns) is None
    assert jpeg_window(data, 1, (300, 400), columns) is None
    grey = jpeg_window(encoded(picture().convert("L")), 1, rows, columns)
    assert grey is not None and (grey[0][..., 0] == grey[0][..., 2]).all()


@needs_library
def test_damage_anywhere_ends_in_an_image_or_none() -> None:
    rng = random.Random(0)
    data = encoded(picture(40, 60))
    for _ in range(300):
        changed = data.clone()
        for _ in range(rng.choice((1, 3, 20))):
            changed[rng.randrange(2, len(changed))] = rng.randrange(256)
        found = jpeg_window(changed, rng.choice((1, 2, 4, 8)), (5, 20), (3, 30))
        assert found is None or found[0].dim() == 3


@pytest.mark.parametrize(
    "change",
    [
        {"data": torch.zeros(4)},
        {"data": torch.zeros(2, 4, dtype=torch.uint8)},
        {"data": torch.zeros(8, dtype=torch.uint8)[::2]},
        {"reduction": 3},
        {"rows": [-1, 4]},
        {"columns": [0, 2**40]},
        {"rows": [1, 2, 3]},
    ],
)
def test_wrong_arguments_are_refused(change: dict[str, Any]) -> None:
    arguments = dict(
        data=torch.zeros(9, dtype=torch.uint8), reduction=1, rows=[0, 4], columns=[0, 4]
    )
    with pytest.raises((ValueError, RuntimeError)):
        native("jpeg_window")(**{**arguments, **change})
