"""Time farthest-point sampling of 600 out of 40,000 points of a LiDAR sweep.

    python benchmarks/bench_farthest_point_sampling.py [--device cpu|cuda] [--repeats N] [--save]

Compared with a plain loop over samples, whose steps are a few torch operations over all points, and
on a GPU with mmcv's kernel. "ours" includes sorting the points into buckets.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # run as a file, not as a module

from benchmarks.common import Report, parse_arguments, timings
from models.ops import farthest_point_sampling, farthest_point_sampling_reference

NUM_SAMPLES = 600


def mmcv_sampling(device: str) -> Callable[[Tensor], object] | None:
    if device != "cuda":
        return None
    try:
        from mmcv.ops import furthest_point_sample
    except ImportError:
        return None
    return lambda points: furthest_point_sample(points[None], NUM_SAMPLES)


def main() -> None:
    args = parse_arguments(__doc__, repeats=7)
    report = Report("farthest_point_sampling", args)
    points = torch.randn(40_000, 3) * torch.tensor([20.0, 20.0, 1.0])
    peer = mmcv_sampling(args.device)
    report.table(["cloud", "ours ms", "plain loop ms", "mmcv ms", "MB"])
    for name, cloud in (("float32", points), ("float64", points.double())):
        cloud = cloud.to(args.device)
        calls: dict[str, Callable[[], object]] = {
            "ours": lambda p=cloud: farthest_point_sampling(p, NUM_SAMPLES),
            "plain loop": lambda p=cloud: farthest_point_sampling_reference(p, NUM_SAMPLES),
        }
        if peer is not None and name == "float32":
            calls["mmcv"] = lambda p=cloud, f=peer: f(p)
        measured = timings(list(calls.values()), args.repeats, args.device)
        report.note_runs(name, dict(zip(calls, measured, strict=True)))
        own, plain, *rest = (timing.ms for timing in measured)
        report.row(
            name, f"{own:.2f}", f"{plain:.1f}", *(f"{time:.2f}" for time in rest or [float("nan")]),
            f"{measured[0].mib:.1f}",
        )  # fmt: skip
        if name == "float32":
            if args.device == "cpu":
                report.aim("farthest_point_sampling:speed_over_plain_loop", plain / own, 5)
            if rest:
                report.aim("farthest_point_sampling:speed_over_mmcv", rest[0] / own, 1)
    report.end()


if __name__ == "__main__":
    main()
