"""Time the fused focal loss of V2's classes against its reference implementation.

    python benchmarks/bench_sigmoid_focal_loss.py [--device cpu|cuda] [--repeats N] [--save]

100,000 voxels of 17 classes, about as many as in a V2 head.
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # run as a file, not as a module

from benchmarks import compare
from benchmarks.common import Report, parse_arguments
from models import ops

VOXELS, CLASSES = 100_000, 17


def main() -> None:
    args = parse_arguments(__doc__, repeats=9)
    report = Report("sigmoid_focal_loss", args)
    logits = torch.randn(VOXELS, CLASSES, device=args.device, requires_grad=True)
    labels = torch.randint(0, CLASSES + 1, (VOXELS,), device=args.device)
    weights = torch.rand(CLASSES, device=args.device)
    functions = {
        "ours": lambda: ops.sigmoid_focal_loss(logits, labels, weights),
        "reference": lambda: ops.sigmoid_focal_loss_reference(logits, labels, weights),
    }
    # The logits are read once, and their gradients are written once in the backward pass.
    moved = 4e-9 * logits.numel()
    rows = compare.forward_and_backward(
        f"{VOXELS} x {CLASSES}", functions, [logits], args, gigabytes=moved
    )
    compare.add_table(report, rows)
    report.end()


if __name__ == "__main__":
    main()
