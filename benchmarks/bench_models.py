"""Rates of the published models, as `scripts/timing.py` measures them, in one table.

    python benchmarks/bench_models.py [--device cpu|cuda] [--dtype float32|bfloat16|float16]
        [--sizes t,s,m,l,v1t,fusion] [--threads N] [--seconds N] [--streaming-only 1]

Random weights, random input, batches of one. "streaming": one new frame a sample; "independent":
all frames of every sample. The percentiles are those of the samples' rates. Needs the whole
environment.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # run as a file, not as a module

from benchmarks.common import ROOT, Report, parse_arguments
from benchmarks.model_cases import CONFIGS, name_of
from scripts.timings.command import WAYS, command_parser, time_model
from scripts.timings.report import Timing, stage_table, summed


def time_size(size: str, args: argparse.Namespace) -> Timing:
    words = ["--config", str(ROOT / "configs" / CONFIGS[size][1]), "--device", args.device]
    words += ["--dtype", args.dtype, "--seconds", str(args.seconds), "--samples", str(args.samples)]
    ways = WAYS[:1] if args.streaming_only else WAYS
    return time_model(command_parser().parse_args([*words, "--warmup", "3", "--ways", *ways]))


def main() -> None:
    args = parse_arguments(
        __doc__, repeats=1, sizes="t", dtypes=("float32", "bfloat16", "float16"),
        seconds=20, samples=500, streaming_only=0,
    )  # fmt: skip
    report = Report("models", args)
    timings: dict[str, Timing] = {}
    report.table(["model", "way", "samples", "ms", "frames/s", "10 %", "90 %", "GFLOP a frame",
                  "M parameters", "host MiB"])  # fmt: skip
    for size in args.sizes.split(","):
        timing = timings[size] = time_size(size, args)
        anatomy = timing.anatomy
        gigaflop = sum(summed(anatomy.gigaflop).values())
        parameters = sum(anatomy.parameters.values()) / 1e6
        for rate in timing.rates:
            speeds = [f"{rate.per_second(percent):.3g}" for percent in (50, 10, 90)]
            own = [f"{gigaflop:.0f}", f"{parameters:.1f}"] if rate.mode == WAYS[0] else ["", ""]
            host = f"{rate.peak_mib.get('host', 0):.0f}"
            ms = f"{1e3 / rate.per_second():.0f}"
            report.row(name_of(size), rate.mode, rate.samples, ms, *speeds, *own, host)
    report.line("")
    for size, timing in timings.items():
        report.line(f"{name_of(size)}, a streaming frame:\n")
        report.line(f"```\n{stage_table(timing.anatomy)}\n```\n")
    report.end()


if __name__ == "__main__":
    main()
