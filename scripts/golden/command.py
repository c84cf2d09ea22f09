"""Compare the code with files of reference numbers.

    python scripts/check_golden.py FILE [FILE ...] [--dtype float32 | tf32 | bfloat16]

Prints one line per quantity: name, largest error, tolerance, ok. The exit code is 1 if a quantity
exceeds its tolerance or a file is not supported.
"""

from __future__ import annotations

import argparse
import functools
from collections.abc import Callable, Iterator, Sequence

import numpy as np

from scripts.golden.report import Check, GoldenFile, GoldenFileError
from scripts.runtime.command_line import CommandParser, run_command

Checker = Callable[[GoldenFile], Iterator[Check]]


def load(path: str) -> GoldenFile:
    """Read a reference file.

    Raises:
        GoldenFileError: The file does not exist or is not an .npz file.
    """
    try:
        with np.load(path) as archive:
            return dict(archive)
    except Exception as error:  # numpy can raise almost any error for a broken file
        raise GoldenFileError(f"not a readable .npz file ({error})") from error


def find_checker(golden: GoldenFile, dtype: str) -> Checker:
    """Return the comparison for a file, selected by its content.

    Raises:
        GoldenFileError: There is no comparison for the file.
    """
    # Imported here, because a file needs only the modules that it checks.
    if "meta/config" in golden:
        from scripts.golden import heads

        if dtype == "float64":
            return heads.check_head_float64
        return functools.partial(heads.check_head_precision, precision=dtype)
    if "rayiou/mean" in golden:
        from scripts.golden.metrics import check_metrics

        return check_metrics
    if "ida/image" in golden:
        from scripts.golden.geometry import check_geometry

        return check_geometry
    raise GoldenFileError("it contains neither a head nor metrics nor geometry")


def check_file(path: str, dtype: str) -> bool:
    """Print the comparison of a file and return whether all quantities agree."""
    print(path)
    try:
        golden = load(path)
        checks = []
        for check in find_checker(golden, dtype)(golden):
            checks.append(check)
            print(f"  {check}", flush=True)
    except GoldenFileError as error:
        print(f"  not supported: {error}")
        return False
    failed = sum(not check.ok for check in checks)
    print(f"  {len(checks) - failed} of {len(checks)} quantities ok")
    return failed == 0


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code."""
    parser = CommandParser(__doc__)
    parser.add_argument("files", nargs="+", metavar="FILE", help=".npz file of reference numbers")
    parser.add_argument(
        "--dtype",
        choices=("float64", "float32", "tf32", "bfloat16"),
        default="float64",
        help="precision of the heads; tf32 and bfloat16 apply only to matrix products",
    )

    def check(args: argparse.Namespace) -> int:
        results = [check_file(path, args.dtype) for path in args.files]
        return 0 if all(results) else 1

    return run_command(parser, check, arguments)
