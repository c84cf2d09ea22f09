"""Data roots whose images were written once at the size that training needs.

`scripts/pack_images.py` makes them. Such a root holds an index next to the images. Its images lack
the rows and the resolution that the augmentation of its config cannot use.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from loaders.errors import BadDataError
from loaders.safe_reading import MIB, FileKind, read_file, reading
from loaders.transforms.geometry import (
    ImageAugParams,
    aug_for_size,
    bottom_crop,
    test_image_aug,
)
from models.ops import resize_window

INDEX_NAME = "packed.json"
FORMAT = 1
_INDEX_FILE = FileKind(
    "index of packed images",
    "pack the images again with scripts/pack_images.py",
    "pack the images again with scripts/pack_images.py",
    max_bytes=MIB,
)
# Pillow's sizes are truncated, so that a crop may reach one row beyond its ratio.
_MARGIN_ROWS = 2
# The first row is also a row of images decoded at a half, a quarter or an eighth.
_ROW_STEP = 8
_SIZE_EPS = 1e-6


@dataclass(frozen=True)
class StoredSize:
    """Storage of images of one raw size.

    Attributes:
        raw_hw: Height and width before packing, pixels.
        full_hw: Size that the whole image was resized to.
        top: First row of the resized image that is stored; those above are left out.
    """

    raw_hw: tuple[int, int]
    full_hw: tuple[int, int]
    top: int = 0

    @property
    def stored_hw(self) -> tuple[int, int]:
        """Height and width of the file's image."""
        return self.full_hw[0] - self.top, self.full_hw[1]


@dataclass(frozen=True)
class PackedImages:
    """Content of the index of a packed data root.

    Attributes:
        root: The packed data root.
        source: Data root that the images were made from.
        sizes: One entry per raw size.
    """

    root: str
    source: str
    sizes: tuple[StoredSize, ...]

    def of(self, raw_hw: tuple[int, int]) -> StoredSize | None:
        """Return how images of a raw size are stored; None if there are none."""
        return next((size for size in self.sizes if size.raw_hw == tuple(raw_hw)), None)

    def check(self, augs: Sequence[ImageAugParams], raw_hw: tuple[int, int]) -> None:
        """Check that images of a raw size hold all pixels that augmentations reach.

        Raises:
            BadDataError: If they do not.
        """
        way_out = (
            "pack the images with this config by scripts/pack_images.py, or set data_root to "
            f"{self.source}, from which they were made"
        )
        stored = self.of(raw_hw)
        if stored is None:
            sizes = ", ".join(f"{size.raw_hw[0]} x {size.raw_hw[1]}" for size in self.sizes)
            raise BadDataError(
                f"images in {self.root} were packed from {sizes} pixels, but raw_hw of the config "
                f"is {raw_hw[0]} x {raw_hw[1]}: {way_out}"
            )
        full_hw = needed_full_size(augs, raw_hw)
        if any(need > have for need, have in zip(full_hw, stored.full_hw, strict=True)):
            raise BadDataError(
                f"images in {self.root} were packed at {stored.full_hw[1] / raw_hw[1]:.3f} of "
                f"their size, but the config enlarges them to {full_hw[1] / raw_hw[1]:.3f}: "
                f"{way_out}"
            )
        first = needed_first_row(augs, stored.full_hw[0])
        if first < stored.top:
            raise BadDataError(
                f"images in {self.root} were packed without their upper "
                f"{stored.top / stored.full_hw[0]:.0%}, but the crops of the config begin at "
                f"{first / stored.full_hw[0]:.0%}: {way_out}"
            )


def extreme_augs(
    raw_hw: tuple[int, int],
    final_hw: tuple[int, int],
    resize_range: tuple[float, float] | None,
    image_hw: tuple[int, int],
) -> list[ImageAugParams]:
    """Return the augmentations that bound all others.

    Args:
        raw_hw: Height and width that the ratios refer to.
        final_hw: Height and width of the network input.
        resize_range: Range of the ratio in training; None for evaluation only.
        image_hw: Height and width of the images, if a camera's differ from `raw_hw`.
    """
    augs = [test_image_aug(raw_hw, final_hw)]
    augs += [bottom_crop(raw_hw, final_hw, ratio) for ratio in resize_range or ()]
    return [aug_for_size(aug, raw_hw, image_hw) for aug in augs]


def needed_full_size(augs: Iterable[ImageAugParams], raw_hw: tuple[int, int]) -> tuple[int, int]:
    """Return the smallest size of a whole image that no augmentation enlarges."""
    ratio = min(1.0, max(aug.resize for aug in augs))
    height, width = (math.ceil(side * ratio - _SIZE_EPS) for side in raw_hw)
    return height, width


def needed_first_row(augs: Iterable[ImageAugParams], full_height: int) -> int:
    """Return the first row that augmentations use of images of this height."""
    tops = []
    for aug in augs:
        window = resize_window(full_height, aug.resize_dims[1], aug.crop[1], aug.size_hw[0])
        tops.append(window[0] - _MARGIN_ROWS)
    return max(0, min(tops))


def smallest_stored_size(augs: Sequence[ImageAugParams], raw_hw: tuple[int, int]) -> StoredSize:
    """Return how to store images so that augmentations find all that they need."""
    full_hw = needed_full_size(augs, raw_hw)
    top = needed_first_row(augs, full_hw[0]) // _ROW_STEP * _ROW_STEP
    return StoredSize(raw_hw, full_hw, top)


def read_packed_index(data_root: str | os.PathLike[str]) -> PackedImages | None:
    """Read the index of a data root; None if its images are not packed.

    Raises:
        BadDataError: If the index is broken or of another version, or the packing is not complete.
    """
    path = Path(data_root) / INDEX_NAME
    if not path.exists():
        return None
    with reading(path, _INDEX_FILE):
        content = json.loads(bytes(read_file(path, _INDEX_FILE)))
        if content["format"] != FORMAT:
            raise BadDataError(
                f"index of packed images {path} has format {content['format']!r}, this version "
                f"reads {FORMAT}: {_INDEX_FILE.restore}"
            )
        if content["is_complete"] is not True:
            raise BadDataError(
                f"images in {data_root} are not all packed: run scripts/pack_images.py again, it "
                "continues where it stopped"
            )
        sizes = tuple(_stored_size(entry) for entry in content["sizes"])
        return PackedImages(str(data_root), str(content["source"]), sizes)


def _stored_size(entry: Mapping[str, Any]) -> StoredSize:
    """Return an entry of the index; raise ValueError if it is impossible."""
    (raw_h, raw_w), (full_h, full_w), top = entry["raw_hw"], entry["full_hw"], entry["top"]
    numbers = (raw_h, raw_w, full_h, full_w, top)
    if any(type(number) is not int for number in numbers):
        raise ValueError("sizes are whole numbers")
    if not (0 < full_h <= raw_h and 0 < full_w <= raw_w and 0 <= top < full_h):
        raise ValueError("a size is impossible")
    return StoredSize((raw_h, raw_w), (full_h, full_w), top)
