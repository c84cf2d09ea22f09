"""Times multi-scale multi-view sampling against its twin and per-level ``grid_sample``.

    python benchmarks/bench_multi_view_sampling.py [--device cpu|cuda] [--dtype float32|float16]
        [--sizes t,s,m,l,v1t,v1l] [--threads N] [--repeats N]

"field" is how published code does it without its own CUDA kernel: project into every camera, pick
one, regroup every level to [B*T*G, c, N, h, w], read it with a volumetric ``grid_sample`` whose
depth axis is the camera, weight, sum.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

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
from models import ops


def field_sampling(
    feats: list[Tensor], points: Tensor, occ2img: Tensor, level_weights: Tensor
) -> Tensor:
    B, Q, G, P, _ = points.shape
    T = occ2img.shape[1] // CAMS
    height, width = IMG_HW
    homogeneous = F.pad(points.reshape(B, 1, 1, Q * G * P, 3), (0, 1), value=1.0)
    matrices = occ2img.view(B, T, CAMS, 1, 4, 4)
    projected = (matrices @ homogeneous[..., None]).squeeze(-1)  # [B, T, N, S, 4]
    depth = projected[..., 2].clamp(min=1e-5)
    uv = projected[..., :2] / depth[..., None] / points.new_tensor([width, height])
    valid = (projected[..., 2] > 1e-5) & (uv > 0).all(-1) & (uv < 1).all(-1)
    camera = valid.to(torch.uint8).argmax(2, keepdim=True)
    uv = uv.gather(2, camera[..., None].expand(-1, -1, -1, -1, 2))[:, :, 0]
    depth_axis = (camera[:, :, 0].to(uv) / max(CAMS - 1, 1))[..., None]
    grid = (torch.cat([uv, depth_axis], -1) * 2 - 1).view(B, T, Q, G, P, 3)
    grid = grid.permute(0, 1, 3, 2, 4, 5).reshape(B * T * G, Q, P, 1, 3)
    # the published pairing: weights laid out (g, t), features (t, g)
    weights = level_weights.permute(0, 2, 1, 3, 4)[:, :, None].expand(B, G, T, Q, P, -1)
    weights = weights.reshape(B * T * G, 1, Q, P, -1)
    out = None
    for level, feat in enumerate(feats):
        h, w = feat.shape[-2:]
        volume = feat.view(B, T, CAMS, G, CHANNELS // G, h, w).permute(0, 1, 3, 4, 2, 5, 6)
        volume = volume.reshape(B * T * G, CHANNELS // G, CAMS, h, w)
        read = F.grid_sample(volume, grid, align_corners=True)[..., 0]
        read = read * weights[..., level]
        out = read if out is None else out + read
    assert out is not None
    out = out.view(B, T, G, CHANNELS // G, Q, P)
    return out.permute(0, 4, 2, 1, 5, 3).flatten(3, 4)


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
        "twin": lambda: ops.multi_view_sampling_reference(
            feats, points, occ2img, weights, IMG_HW, CAMS
        ),
        "field": lambda: field_sampling(wide, points, occ2img, weights),
    }
    # every texel that a sample touches once, and the output
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
