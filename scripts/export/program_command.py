"""Compile a model into a package that a C++ program loads.

    python scripts/export_program.py CONFIG --weights CHECKPOINT --out model.pt2 [--check]

The package needs libtorch and the library of this project's operations; examples/cpp runs it.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from models.ops import library_path
from scripts.export.checking import (
    add_check_argument,
    add_frame_argument,
    add_model_arguments,
    check,
    check_target,
    describe,
    write_sample,
)
from scripts.export.program import ProgramRunner, program_functions, write_program
from scripts.export.source import load_source
from scripts.runtime.command_line import CommandParser, run_command

TOLERANCE = 0.999


def export(args: argparse.Namespace) -> int:
    """Write the package, and compare it if requested."""
    out = check_target("--out", args.out, ".pt2")
    if args.frame is not None:
        check_target("--frame", args.frame, ".npz")
    source = load_source(args.config, args.cfg_options, args.weights, args.image_size)
    functions = program_functions(source)
    path = write_program(source, functions, out)
    print(f"{path} ({path.stat().st_size / 2**20:.1f} MiB); operations: {library_path()}")
    for function in functions:
        describe(function)
    if args.frame is not None:
        write_sample(source, args.frame)
    if args.check is None:
        return 0
    return (
        0 if check(source, ProgramRunner(path, source.head.num_cams), args.check, TOLERANCE) else 1
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code."""
    parser = CommandParser(__doc__)
    add_model_arguments(parser, ".pt2")
    add_frame_argument(parser, "examples/cpp")
    add_check_argument(parser, "the package")
    return run_command(parser, export, arguments)
