"""Time 3 x 3 convolutions by Winograd's algorithm against torch's.

    python benchmarks/bench_winograd_conv.py [--threads N] [--repeats N] [--save]

The maps are those of one frame of six cameras at 704 x 256 pixels: of the feature pyramid and of
the stages of ResNet-50. "both" includes the gradients of image, weight and bias. Needs only a CPU.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import torch
import torch.nn.functional as F

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # run as a file, not as a module

from benchmarks import compare
from benchmarks.common import Report, parse_arguments
from models import ops

CAMS = 6
# channels, height, width
CASES = ((256, 64, 176), (256, 32, 88), (128, 32, 88), (256, 16, 44))
AIM = 1.5  # of the largest, forward and with gradients


def bench(case: tuple[int, int, int], args: argparse.Namespace) -> list[compare.Row]:
    channels, height, width = case
    x = torch.randn(CAMS, channels, height, width).relu()
    x = x.contiguous(memory_format=torch.channels_last).requires_grad_()
    weight = (0.02 * torch.randn(channels, channels, 3, 3)).requires_grad_()
    bias = torch.randn(channels).requires_grad_()
    functions: compare.Functions = {
        "ours": lambda: ops.winograd_conv(x, weight, bias),
        "conv2d": lambda: F.conv2d(x, weight, bias, padding=1),
    }
    # a quarter of the multiplications of the definition
    gigaflop = 2e-9 * 9 / 4 * x.numel() * channels
    return compare.forward_and_backward(
        f"{channels} channels, {height} x {width}", functions, [x, weight, bias], args,
        gigaflop=gigaflop, tolerance=1e-3,
    )  # fmt: skip


def main() -> None:
    args = parse_arguments(__doc__, repeats=7)
    if args.device != "cpu":
        print("winograd_conv runs only on CPUs: nothing to time.")
        return
    report = Report("winograd_conv", args)
    rows = [row for case in CASES for row in bench(case, args)]
    compare.add_table(report, rows)
    for row, kind in zip(rows[:2], ("forward", "both"), strict=True):
        report.aim(f"winograd_conv:{kind}_over_conv2d", row.ratio("conv2d"), AIM)
    report.end()


if __name__ == "__main__":
    main()
