"""Time RayIoU of whole samples: 8 origins of 14,040 rays through prediction and ground truth.

    python benchmarks/bench_ray_iou.py [--device cpu|cuda] [--samples 200] [--save]

Street scenes of Occ3D's grid; predictions have missing, moved, mislabelled and invented voxels.
"walk to the exit" is the traversal of a scheme that follows every ray to the grid's exit before it
searches: single steps through empty grids, for both grids. Its search is not included. "one by one"
casts each grid's rays with early exit and without skipping. These two are more than ten times as
slow and are timed on every tenth sample.
"""

from __future__ import annotations

import math
import statistics
import sys
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # run as a file, not as a module

from benchmarks.common import Report, medians_ms, parse_arguments, peak_memory_mb, street
from models.ops import OccupancyPyramid, label_rays, ray_iou_counts
from models.ops.ray_cast import _ray_cast

FREE, EDGE, MIN = 17, 0.4, (-40.0, -40.0, -1.0)
THRESHOLDS = (1.0, 2.0, 4.0)
SLOW_EVERY = 10


def directions() -> Tensor:
    """Return the 39 x 360 rays of RayIoU, float32 [14040, 3]."""
    pitches = [-(math.pi / 2 - math.atan(k)) for k in range(1, 11)]
    while pitches[-1] < 0.21:
        pitches.append(2 * pitches[-1] - pitches[-2])
    pitch = torch.tensor(pitches, dtype=torch.float64)[:, None]
    azimuth = torch.arange(360, dtype=torch.float64).deg2rad()
    axes = (pitch.cos() * azimuth.cos(), pitch.cos() * azimuth.sin(), pitch.sin() + 0 * azimuth)
    return torch.stack(axes, -1).view(-1, 3).float()


def predicted(gt: Tensor) -> Tensor:
    """Lose 15 % of the voxels, mislabel 10 %, invent a tenth as many, shift all by a voxel."""
    pred = torch.where(torch.rand(gt.shape) < 0.15, FREE, gt)
    wrong = (pred != FREE) & (torch.rand(gt.shape) < 0.1)
    pred = torch.where(wrong, torch.randint(0, FREE, gt.shape, dtype=torch.uint8), pred)
    invented = torch.rand(gt.shape) < 0.1 * (gt != FREE).float().mean()
    pred = torch.where(invented, torch.tensor(4, dtype=torch.uint8), pred)
    return pred.roll(1, 0).to(torch.uint8)


def main() -> None:
    args = parse_arguments(__doc__, repeats=1, samples=200)
    report = Report("ray_iou", args)
    rays = directions().to(args.device)
    origins = torch.stack([torch.linspace(-30, 30, 8), torch.zeros(8), torch.full((8,), 1.8)], 1)
    origins = origins.double().to(args.device)
    sample = torch.zeros(8, dtype=torch.int64, device=args.device)
    tail = (MIN, EDGE, FREE, 18, THRESHOLDS)
    cast = (origins, rays.double(), MIN, (EDGE,) * 3, FREE, math.inf)
    free = torch.full((1, 200, 200, 16), FREE, dtype=torch.uint8, device=args.device)
    empty = OccupancyPyramid(free, FREE)

    def one_by_one(pred: Tensor, gt: Tensor) -> object:
        return _ray_cast(OccupancyPyramid(torch.cat([pred, gt]), FREE), *cast, False)

    names = ("both grids cast", "ground truth cached", "one by one", "walk to the exit")
    times_of: dict[str, list[float]] = {name: [] for name in names}
    for number in range(args.samples):
        scene = street((200, 200, 16), EDGE)
        pred, gt = predicted(scene)[None].to(args.device), scene[None].to(args.device)
        cached = label_rays(gt, origins, sample, rays, MIN, EDGE, FREE)
        calls: list[Callable[[], object]] = [
            lambda p=pred, g=gt: ray_iou_counts(p, g, origins, sample, rays, *tail),
            lambda p=pred, g=cached: ray_iou_counts(p, g, origins, sample, rays, *tail),
            lambda p=pred, g=gt: one_by_one(p, g),
            lambda: [_ray_cast(empty, *cast, False) for _ in range(2)],
        ]
        timed = len(calls) if number % SLOW_EVERY == 0 else 2
        measured = medians_ms(calls[:timed], args.repeats, args.device)
        for name, time in zip(names, measured, strict=False):
            times_of[name].append(time)
    times = [statistics.median(own) for own in times_of.values()]
    full, short, _, walk = times
    report.table(["what", "ms a sample", "samples/s", "MB", "samples"])
    for (name, own), time, call in zip(times_of.items(), times, calls, strict=True):
        memory = peak_memory_mb(call, args.device)
        report.row(name, f"{time:.2f}", f"{1e3 / time:.1f}", f"{memory:.1f}", len(own))
    if args.device == "cpu":
        report.aim("ray_iou:samples_per_s_both_grids", 1e3 / full, 60)
        report.aim("ray_iou:samples_per_s_cached", 1e3 / short, 100)
    report.aim("ray_iou:speed_over_walk_to_exit", walk / full, 10)
    report.aim("ray_iou:speed_over_walk_to_exit_cached", walk / short, 10)
    report.end()


if __name__ == "__main__":
    main()
