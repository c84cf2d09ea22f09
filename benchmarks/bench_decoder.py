"""Time the whole decoder and head of a variant, native operations against their plain twins.

    python benchmarks/bench_decoder.py [--device cpu|cuda] [--sizes t] [--threads N] [--repeats N]

One sample, 704 x 256, 8 frames, evaluation mode: from the feature maps to voxel logits (queries,
sampling, mixing, attention, CPD). Needs the whole environment, not torch alone.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import torch
from mmengine.config import Config
from mmengine.registry import MODELS
from torch import nn

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # run as a file, not as a module

import models.register
from benchmarks import compare
from benchmarks.common import Report, parse_arguments
from benchmarks.decoder_cases import IMG_HW, VARIANTS, camera_matrices, feature_maps
from models.heads import CameraGeometry
from scripts.golden.heads import plain_operations

CONFIG = "configs/opusv2_nusc-occ3d/opusv2-{}_r50_704x256_8f_nusc-occ3d_50e.py"


def build_head(size: str) -> nn.Module:
    config = Config.fromfile(CONFIG.format(size)).model.pts_bbox_head
    head = MODELS.build(config).eval()
    for name, parameter in head.named_parameters():
        # weights that start at zero would make all queries alike
        if name.endswith(("parameter_generator.weight", "sampling_offset.weight")):
            nn.init.normal_(parameter, std=0.02)
    return head


def compare_paths(size: str, args: argparse.Namespace) -> compare.Row:
    head = build_head(size).to(args.device)
    feats = [x.to(args.device) for x in feature_maps(True)]
    ego2img = camera_matrices()[None].to(args.device)
    geometry = CameraGeometry(ego2img, torch.eye(4, device=args.device)[None], IMG_HW)

    def ours() -> object:
        with torch.no_grad():
            return head(feats, geometry).voxels[-1].logits

    def twins() -> object:
        with plain_operations():
            return ours()

    name = f"{VARIANTS[size].name} decoder and head"
    return compare.measure(name, {"ours": ours, "twin": twins}, args)


def main() -> None:
    args = parse_arguments(__doc__, repeats=7, sizes="t")
    assert models.register
    report = Report("decoder", args)
    rows = [compare_paths(size, args) for size in args.sizes.split(",")]
    compare.add_table(report, rows)
    for row in rows:
        report.aim(f"decoder:{row.case}_over_plain_twins".replace(" ", "_"), row.ratio("twin"), 3.0)
    report.end()


if __name__ == "__main__":
    main()
