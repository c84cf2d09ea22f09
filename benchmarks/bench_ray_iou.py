"""RayIoU of whole samples: 8 origins of 14,040 rays through prediction and ground truth.

    python benchmarks/bench_ray_iou.py [--device cpu|cuda] [--samples 200] [--save]

Street scenes of Occ3D's grid; predictions have voxels lost, moved, mislabelled and invented. The
scheme that walks every ray to the grid's exit before it searches is timed as its walk alone: single
steps through empty grids, for both grids; its search, and storing the way, would come on top. "One
by one" casts each grid's rays with early exit and without skipping.
"""

from __future__ import annotations

import math
import statistics
import sys
from pathlib import Path

import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # run as a file, not as a module

from benchmarks.common import Report, medians_ms, parse_arguments, street
from models.ops import OccupancyPyramid, label_rays, ray_iou_counts
from models.ops.ray_cast import _ray_cast

FREE, EDGE, MIN = 17, 0.4, (-40.0, -40.0, -1.0)
THRESHOLDS = (1.0, 2.0, 4.0)


def directions() -> Tensor:
    """The 39 x 360 rays of RayIoU, float32 [14040, 3]."""
    pitches = [-(math.pi / 2 - math.atan(k)) for k in range(1, 11)]
    while pitches[-1] < 0.21:
        pitches.append(2 * pitches[-1] - pitches[-2])
    pitch = torch.tensor(pitches, dtype=torch.float64)[:, None]
    azimuth = torch.arange(360, dtype=torch.float64).deg2rad()
    axes = (pitch.cos() * azimuth.cos(), pitch.cos() * azimuth.sin(), pitch.sin() + 0 * azimuth)
    return torch.stack(axes, -1).view(-1, 3).float()


def predicted(gt: Tensor) -> Tensor:
    """15 % of the voxels lost, 10 % mislabelled, a tenth as many invented, all a voxel off."""
    pred = torch.where(torch.rand(gt.shape) < 0.15, FREE, gt)
    wrong = (pred != FREE) & (torch.rand(gt.shape) < 0.1)
    pred = torch.where(wrong, torch.randint(0, FREE, gt.shape, dtype=torch.uint8), pred)
    invented = torch.rand(gt.shape) < 0.1 * (gt != FREE).float().mean()
    pred = torch.where(invented, torch.tensor(4, dtype=torch.uint8), pred)
    return pred.roll(1, 0).to(torch.uint8)


def main() -> None:
    args = parse_arguments(__doc__, repeats=1, samples=200)
    report = Report("ray_iou", args)
    scenes = [street((200, 200, 16), EDGE) for _ in range(min(args.samples, 20))]
    gts = torch.stack(scenes).to(args.device)
    preds = torch.stack([predicted(scene) for scene in scenes]).to(args.device)
    rays = directions().to(args.device)
    origins = torch.stack([torch.linspace(-30, 30, 8), torch.zeros(8), torch.full((8,), 1.8)], 1)
    origins = origins.double().to(args.device)
    sample = torch.zeros(8, dtype=torch.int64, device=args.device)
    tail = (MIN, EDGE, FREE, 18, THRESHOLDS)
    cached = [label_rays(gt[None], origins, sample, rays, MIN, EDGE, FREE) for gt in gts]
    empty = OccupancyPyramid(torch.full_like(gts[:1], FREE), FREE)
    cast = (origins, rays.double(), MIN, (EDGE,) * 3, FREE, math.inf)

    def both(i: int) -> object:
        return ray_iou_counts(preds[i : i + 1], gts[i : i + 1], origins, sample, rays, *tail)

    def with_cache(i: int) -> object:
        return ray_iou_counts(preds[i : i + 1], cached[i], origins, sample, rays, *tail)

    def to_the_exit(_: int) -> object:
        return [_ray_cast(empty, *cast, False) for _ in range(2)]

    def one_by_one(i: int) -> object:
        grids = OccupancyPyramid(torch.stack([preds[i], gts[i]]), FREE)
        return _ray_cast(grids, *cast, False)

    jobs = (both, with_cache, one_by_one, to_the_exit)
    rows = []
    for i in range(args.samples):
        scene = i % len(scenes)
        calls = [lambda f=job, s=scene: f(s) for job in jobs]
        rows.append(medians_ms(calls, args.repeats, args.device))
    full, short, plain, walk = (statistics.median(column) for column in zip(*rows, strict=True))
    report.table(["what", "ms a sample", "samples/s"])
    names = ("both grids cast", "ground truth cached", "one by one", "walk to the exit")
    for name, time in zip(names, (full, short, plain, walk), strict=True):
        report.row(name, f"{time:.2f}", f"{1e3 / time:.1f}")
    if args.device == "cpu":
        report.aim("ray_iou:samples_per_s_both_grids", 1e3 / full, 60)
        report.aim("ray_iou:samples_per_s_cached", 1e3 / short, 100)
    report.aim("ray_iou:speed_over_walk_to_exit", walk / full, 10)
    report.aim("ray_iou:speed_over_walk_to_exit_cached", walk / short, 10)
    report.end()


if __name__ == "__main__":
    main()
