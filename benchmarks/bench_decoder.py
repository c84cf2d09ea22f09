"""Time decoder and head of a variant: native operations against their reference implementations.

    python benchmarks/bench_decoder.py [--device cpu|cuda] [--sizes t] [--threads N] [--repeats N]

One sample, 704 x 256, 8 frames, evaluation mode: from the feature maps to voxel logits (queries,
sampling, mixing, attention, CPD). Needs the whole environment.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import torch
from mmengine.registry import MODELS
from torch import nn

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # run as a file, not as a module

import models.register
from benchmarks import compare
from benchmarks.common import Report, parse_arguments
from benchmarks.decoder_cases import IMG_HW, VARIANTS, camera_matrices, feature_maps
from benchmarks.model_cases import config_of
from models.heads import CameraGeometry
from scripts.golden.heads import plain_operations


def build_head(size: str) -> nn.Module:
    head = MODELS.build(config_of(size).model.pts_bbox_head).eval()
    for name, parameter in head.named_parameters():
        # Weights that are initialised with zero would make all queries equal.
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

    def reference() -> object:
        with plain_operations():
            return ours()

    name = f"{VARIANTS[size].name} decoder and head"
    return compare.measure(name, {"ours": ours, "reference": reference}, args)


def main() -> None:
    args = parse_arguments(__doc__, repeats=7, sizes="t")
    assert models.register
    report = Report("decoder", args)
    rows = [compare_paths(size, args) for size in args.sizes.split(",")]
    compare.add_table(report, rows)
    for row in rows:
        report.aim(
            f"decoder:{row.case}_over_reference".replace(" ", "_"), row.ratio("reference"), 3.0
        )
    report.end()


if __name__ == "__main__":
    main()
