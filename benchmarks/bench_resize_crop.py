"""Time the exact resize of a crop against quick ones, Pillow's and the reference in torch.

    python benchmarks/bench_resize_crop.py [--threads N] [--repeats N] [--save]

Images of 1600 x 900, of half that size and of packed data roots, to 704 x 256 pixels.
"""

from __future__ import annotations

import sys
from functools import partial
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # run as a file, not as a module

from benchmarks import compare
from benchmarks.common import Report, parse_arguments
from models import ops

RESIZED, CROP, SIZE = (418, 744), (162, 20), (256, 704)


def by_pillow(image: Tensor) -> Tensor:
    """Resize all, then crop, as published."""
    resized = Image.fromarray(image.numpy()).resize(RESIZED[::-1], Image.Resampling.BICUBIC)
    box = (CROP[1], CROP[0], CROP[1] + SIZE[1], CROP[0] + SIZE[0])
    return torch.from_numpy(np.array(resized.crop(box)))


def main() -> None:
    args = parse_arguments(__doc__, repeats=9)
    report = Report("resize_crop", args)
    rows = []
    for full in ((900, 1600), (450, 800), (495, 880)):
        image = torch.randint(0, 256, (*full, 3), dtype=torch.uint8)
        out = torch.empty(*SIZE, 3, dtype=torch.uint8)
        call = (out, image, full, (0, 0), RESIZED, CROP)
        functions: compare.Functions = {
            "ours": partial(ops.resize_crop, *call),
            "cubic": partial(ops.resize_crop, *call, method="cubic"),
            "linear": partial(ops.resize_crop, *call, method="linear"),
            "twin": partial(ops.resize_crop_reference, *call),
            "Pillow": partial(by_pillow, image),
        }
        moved = 1e-9 * (image.numel() + out.numel())
        rows.append(compare.measure(f"{full[1]} x {full[0]}", functions, args, gigabytes=moved))
    compare.add_table(report, rows)
    report.end()


if __name__ == "__main__":
    main()
