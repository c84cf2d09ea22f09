"""Write a model as ONNX, for onnxruntime and other runtimes.

    python scripts/export_onnx.py CONFIG --weights CHECKPOINT --out model.onnx [--split] [--check]

Only standard operators are used. Inputs, outputs and metadata: docs/deployment.md.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from scripts.export.checking import (
    add_check_argument,
    add_frame_argument,
    add_model_arguments,
    check,
    check_target,
    describe,
    write_sample,
)
from scripts.export.comparison import OnnxRunner
from scripts.export.functions import Function, functions_of
from scripts.export.graphs import Layout
from scripts.export.onnx_model import LOWEST_OPSET, save_onnx, to_onnx
from scripts.export.source import Source, load_source
from scripts.runtime.command_line import CommandParser, number_from, run_command

# Minimum share of equal voxels; in half precision sampling points move.
TOLERANCE = {False: 0.999, True: 0.9}


def command_parser() -> CommandParser:
    """Return the command line of export_onnx.py."""
    parser = CommandParser(__doc__)
    add_model_arguments(parser, ".onnx")
    parser.add_argument(
        "--opset",
        type=number_from(LOWEST_OPSET),
        default=LOWEST_OPSET,
        metavar="N",
        help=f"version of ONNX's operators (default: {LOWEST_OPSET})",
    )
    parser.add_argument(
        "--split",
        action="store_true",
        help="two files: FILE_image.onnx, the image network of one frame, and FILE_decoder.onnx, "
        "the rest, so that a stream computes new frames only",
    )
    parser.add_argument(
        "--half", action="store_true", help="the image network in half precision (float16)"
    )
    add_frame_argument(parser, "examples/onnx_stream.py")
    add_check_argument(parser, "the file in onnxruntime")
    return parser


def export(args: argparse.Namespace) -> int:
    """Write the files, and compare them if requested."""
    out = check_target("--out", args.out, ".onnx")
    if args.frame is not None:
        check_target("--frame", args.frame, ".npz")
    source = load_source(args.config, args.cfg_options, args.weights, args.image_size)
    functions = functions_of(source, Layout.STACKED, split=args.split, half=args.half)
    files = [write(source, function, out, args.opset) for function in functions]
    if args.frame is not None:
        write_sample(source, args.frame)
    if args.check is None:
        return 0
    runner = OnnxRunner(files, source.head.num_cams)
    return 0 if check(source, runner, args.check, TOLERANCE[args.half]) else 1


def write(source: Source, function: Function, out: Path, opset: int) -> Path:
    """Export a function to its file and print what was written."""
    path = save_onnx(to_onnx(source, function, opset), function.path(out))
    print(f"{path} ({path.stat().st_size / 2**20:.1f} MiB)")
    describe(function)
    return path


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code."""
    return run_command(command_parser(), export, arguments)
