"""Time the Inferencer on noise: pushes of a stream with their parts, and single frames.

    python benchmarks/bench_inference.py [--config C ...] [--rates 2 10] [--frames 12] [--save]

Six JPEG images of 1600 x 900 a frame, an untrained model. Pushes are measured once the history is
full: frames at 2 and at 10 a second, in turns. `prepare` is decoding, resizing and packing, `model`
the rest. `CPU` is the processor time of a push, which other work on the machine changes little.
The last column is a single frame without history (`predict`). All values are medians.
"""

from __future__ import annotations

import argparse
import io
import logging
import platform
import statistics
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from mmengine.logging import MMLogger
from PIL import Image

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # run as a file, not as a module

from loaders.info_io import CAMERAS
from models.inference import CameraFrame, Frame, OccupancyInferencer
from scripts.runtime.environment import git_commit
from scripts.runtime.host_allocator import keep_freed_memory

ROOT = Path(__file__).resolve().parents[1]
CONFIGS = (
    "configs/toy/opusv2-nano_toy.py",
    "configs/opusv2_nusc-occ3d/opusv2-t_r50_704x256_8f_nusc-occ3d_100e.py",
)


def make_frame(seed: int) -> Frame:
    """Return a frame of smooth noise, which JPEG compresses as it does photographs."""
    generator = np.random.default_rng(seed)
    cameras = {}
    for i, name in enumerate(CAMERAS):
        small = generator.integers(0, 255, (57, 100, 3), dtype=np.uint8)
        stream = io.BytesIO()
        Image.fromarray(small).resize((1600, 900), Image.Resampling.BICUBIC).save(stream, "JPEG")
        yaw = 2 * np.pi * i / len(CAMERAS)
        c, s = np.cos(yaw), np.sin(yaw)
        mount = np.eye(4)
        mount[:3, :3] = [[s, 0, c], [-c, 0, s], [0, -1, 0]]
        mount[:3, 3] = [c, s, 1.5]
        intrinsics = [[1260, 0, 800], [0, 1260, 450], [0, 0, 1]]
        cameras[name] = CameraFrame(stream.getvalue(), intrinsics, mount)
    return Frame(cameras)


class Timed:
    """Record the seconds of every call of an inferencer's model."""

    def __init__(self, inferencer: OccupancyInferencer) -> None:
        self.seconds: list[float] = []
        predict = inferencer.predictor.predict

        def timed(*args: Any, **kwargs: Any) -> Any:
            start = time.perf_counter()
            found = predict(*args, **kwargs)
            if inferencer.predictor.device.type == "cuda":
                torch.cuda.synchronize()
            self.seconds.append(time.perf_counter() - start)
            return found

        inferencer.predictor.predict = timed  # type: ignore[method-assign]


def measure(config: str, rates: Sequence[float], frames: int, device: str | None) -> list[str]:
    """Return rows of the table for a config."""
    inferencers = {}
    for rate in rates:
        options = {"raw_hw": [900, 1600]}
        inferencers[rate] = OccupancyInferencer(ROOT / config, device=device, cfg_options=options)
    timers = {rate: Timed(each) for rate, each in inferencers.items()}
    images = [make_frame(seed) for seed in range(4)]
    span_s = 0.5 * inferencers[rates[0]].num_frames
    totals: dict[float, list[tuple[float, float]]] = {rate: [] for rate in rates}
    clock = {rate: 0 for rate in rates}

    def push(rate: float) -> tuple[float, float]:
        number = clock[rate]
        clock[rate] += 1
        start, cpu_start = time.perf_counter(), time.process_time()
        inferencers[rate].push(replace(images[number % 4], time_s=number / rate))
        return time.perf_counter() - start, time.process_time() - cpu_start

    for rate in rates:
        for _ in range(round(span_s * rate) + 2):
            push(rate)
        timers[rate].seconds.clear()
    alone = []
    for number in range(frames):
        for rate in rates:
            totals[rate].append(push(rate))
        start = time.perf_counter()
        inferencers[rates[0]].predict(images[number % 4])
        alone.append(time.perf_counter() - start)
        timers[rates[0]].seconds.pop()
    rows = []
    for rate in rates:
        total, cpu = (statistics.median(column) for column in zip(*totals[rate], strict=True))
        model = statistics.median(timers[rate].seconds)
        single = f"{1000 * statistics.median(alone):.0f} ms" if rate == rates[0] else ""
        kept = f"{inferencers[rate].kept_frames} | {len(inferencers[rate].model.cache)}"
        rows.append(
            f"| {Path(config).stem} | {rate:g} | {1000 * total:.0f} ms | "
            f"{1000 * (total - model):.0f} ms | {1000 * model:.0f} ms | "
            f"{1000 * cpu:.0f} ms | {kept} | {single} |"
        )
    return rows


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--config", nargs="+", default=list(CONFIGS))
    parser.add_argument("--rates", type=float, nargs="+", default=[2.0, 10.0], metavar="HZ")
    parser.add_argument("--frames", type=int, default=12, help="measured pushes of each kind")
    parser.add_argument("--device", default=None)
    parser.add_argument("--note", default="", help="a remark for the table, such as other load")
    parser.add_argument("--save", action="store_true", help="write benchmarks/results/inference.md")
    args = parser.parse_args(arguments)
    MMLogger.get_instance("bench").setLevel(logging.ERROR)
    keep_freed_memory()
    torch.manual_seed(0)
    rows = [
        row
        for config in args.config
        for row in measure(config, args.rates, args.frames, args.device)
    ]
    device = args.device or ("cuda" if torch.cuda.is_available() else "cpu")
    name = torch.cuda.get_device_name() if device.startswith("cuda") else platform.processor()
    lines = [
        "# The Inferencer",
        "",
        f"`python benchmarks/bench_inference.py --frames {args.frames}`, "
        f"{time.strftime('%Y-%m-%d')}, {device} ({name or platform.machine()}, "
        f"{torch.get_num_threads()} threads), torch {torch.__version__}, commit {git_commit()}.",
        *([args.note] if args.note else []),
        "",
        "Six JPEG images of 1600 x 900 a frame, untrained models, medians.",
        "",
        "| config | pushes a second | push | prepare | model | CPU | frames kept | with features | "
        "one frame without history |",
        "|---|---|---|---|---|---|---|---|---|",
        *rows,
    ]
    print("\n".join(lines))
    if args.save:
        (ROOT / "benchmarks/results/inference.md").write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
