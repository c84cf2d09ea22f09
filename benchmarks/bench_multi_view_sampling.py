"""Time multi-scale multi-view sampling against its reference and per-level `grid_sample`.

    python benchmarks/bench_multi_view_sampling.py [--device cpu|cuda] [--dtype float32|float16]
        [--sizes t,s,m,l,v1t,v1l] [--threads N] [--repeats N]

"field" is the method of published code without its own CUDA kernel, see `field_sampling.py`.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # run as a file, not as a module

from benchmarks import compare
from benchmarks.common import Report, parse_arguments
from benchmarks.decoder_cases import (
    CAMS,
    CHANNELS,
    FRAMES,
    GROUPS,
    IMG_HW,
    VARIANTS,
    camera_matrices,
    feature_maps,
    sampling_points,
)
from benchmarks.field_sampling import field_sampling
from models import ops


def bench(name: str, args: argparse.Namespace) -> list[compare.Row]:
    variant = VARIANTS[name]
    dtype = getattr(torch, args.dtype)
    feats = [x.to(args.device) for x in feature_maps(True, dtype)]
    points = sampling_points(variant).to(args.device)
    occ2img = camera_matrices()[None].to(args.device)
    weights = torch.randn(1, variant.queries, GROUPS, variant.points, len(feats)).softmax(-1)
    weights = weights.to(args.device)
    leaves = [x.requires_grad_() for x in (*feats, points, weights)]
    wide = [x.float() for x in feats] if dtype != torch.float32 else feats

    functions = {
        "ours": lambda: ops.multi_view_sampling(feats, points, occ2img, weights, IMG_HW, CAMS),
        "reference": lambda: ops.multi_view_sampling_reference(
            feats, points, occ2img, weights, IMG_HW, CAMS
        ),
        "field": lambda: field_sampling(wide, points, occ2img, weights, IMG_HW, CAMS),
    }
    # Every texel that a sample reads, once, and the output.
    reads = variant.queries * GROUPS * variant.points * FRAMES
    moved = reads * CHANNELS / GROUPS * (4 * len(feats) * feats[0].element_size() + 4)
    return compare.forward_and_backward(
        variant.name, functions, leaves, args, gigabytes=1e-9 * moved, tolerance=2e-3
    )


def main() -> None:
    args = parse_arguments(
        __doc__, repeats=7, sizes="t,s,m,l,v1t,v1l", dtypes=("float32", "float16", "bfloat16")
    )
    report = Report("multi_view_sampling", args)
    sizes = args.sizes.split(",")
    rows = [row for name in sizes for row in bench(name, args)]
    compare.add_table(report, rows)
    wanted = (5.0, 4.0) if args.device == "cpu" else (4.0, 4.0)
    for name in sizes:
        case = VARIANTS[name].name
        for kind, goal in zip(("forward", "both"), wanted, strict=True):
            ratio = compare.row_of(rows, f"{case} {kind}").ratio("field")
            report.aim(f"multi_view_sampling:{case}_{kind}_over_grid_sample", ratio, goal)
    report.end()


if __name__ == "__main__":
    main()
