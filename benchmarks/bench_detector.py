"""Time whole detectors against a plain implementation.

    python benchmarks/bench_detector.py [--device cpu|cuda] [--sizes t,s,m,l,v1t,fusion]
        [--threads N] [--repeats N]

"frame" is a sample of a stream, from uint8 images (and points) in host memory to the predicted
voxels: one new frame, seven cached ones. "decoder and head" is the part after the feature maps.
"plain" is `benchmarks/plain_detector.py`: sampling by `grid_sample` per level, plain-torch
reference implementations of all other operations, NCHW, batch norms not folded, frames stacked.
Weights are random, so there are fewer predicted voxels than with a trained model. Needs the whole
environment.
"""

from __future__ import annotations

import argparse
import itertools
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # run as a file, not as a module

from benchmarks import compare
from benchmarks.common import Report, parse_arguments
from benchmarks.model_cases import model_and_drive, name_of
from benchmarks.plain_detector import PlainStream, plain_head, plain_way
from models.heads import CameraGeometry

AIMS = {"frame": 2.5, "decoder and head": 4.0}
#: Tolerance of the last layer's normalised coordinates, and the share of points within it: below 1,
#: because a sampling point that crosses the border of an image reads another camera.
TOLERANCE, AGREEING = 1e-3, 0.98


def check_agreement(case: str, ours: Any, plain: Any) -> None:
    """Raise an error if the two detectors do not compute the same."""
    difference = (ours.points[-1] - plain.points[-1]).abs().amax(-1)
    agreeing = float((difference < TOLERANCE).float().mean())
    if agreeing < AGREEING:
        raise SystemExit(f"{case}: {agreeing:.1%} of the points agree, {AGREEING:.0%} should")


def frames(size: str, args: argparse.Namespace) -> compare.Row:
    model, drive = model_and_drive(size, args.device)
    stream = PlainStream(model)
    first = drive.batch(range(1))

    def running(begin: int) -> Callable[[], None]:
        numbers = itertools.count(begin)

        @torch.no_grad()
        def run() -> None:
            number = next(numbers)
            model.test_step(drive.batch(range(number, number + 1)))

        return run

    ours, inside = running(1), running(1)

    def plain() -> None:
        with plain_way(model, stream):
            inside()

    with torch.no_grad():
        raw = model(**model.data_preprocessor(first), mode="tensor")
        with plain_way(model, stream):
            check_agreement(name_of(size), raw, model(**model.data_preprocessor(first)))
    return compare.measure(f"{name_of(size)} frame", {"ours": ours, "plain": plain}, args)


def heads(size: str, args: argparse.Namespace) -> compare.Row:
    model, drive = model_and_drive(size, args.device)
    model.streaming = False
    data = model.data_preprocessor(drive.batch(range(20, 21)))
    samples, images = data["data_samples"], data["inputs"]["img"]
    with torch.no_grad():
        feats = model.extract_feat(images[:, :6], samples)
        # the maps of one frame for all: the values do not matter for the time
        repeat = images.shape[1] // 6
        nhwc = [x.movedim(2, -1).repeat(1, repeat, 1, 1, 1).movedim(-1, 2) for x in feats]
        nchw = [x.contiguous() for x in nhwc]
        lidar = model.extract_lidar(data["inputs"]["points"]) if model.has_lidar else None
    geometry = CameraGeometry(
        torch.stack([sample.ego2img for sample in samples]),
        torch.stack([sample.ego2occ for sample in samples]),
        tuple(images.shape[-2:]),
    )
    head = model.pts_bbox_head

    @torch.no_grad()
    def run(maps: list[torch.Tensor]) -> object:
        return head.predict(head(maps, geometry, lidar), samples)

    def plain() -> object:
        with plain_head():
            return run(nchw)

    functions = {"ours": lambda: run(nhwc), "plain": plain}
    return compare.measure(f"{name_of(size)} decoder and head", functions, args)


def main() -> None:
    args = parse_arguments(__doc__, repeats=7, sizes="t")
    report = Report("detector", args)
    rows = []
    for size in args.sizes.split(","):
        rows += [frames(size, args), heads(size, args)]
    compare.add_table(report, rows)
    for row in rows:
        case = row.case.replace(" ", "_")
        name, goal = next((name, goal) for name, goal in AIMS.items() if row.case.endswith(name))
        ratio = row.ratio("plain")
        if row.case.startswith("V2-T"):
            report.aim(f"detector:{case}_over_plain", ratio, goal)
        else:
            report.line(f"detector:{case}_over_plain {ratio:.3g} (aim of V2-T's {name}: {goal:g})")
    report.end()


if __name__ == "__main__":
    main()
