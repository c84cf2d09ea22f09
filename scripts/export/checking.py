"""Shared parts of the export commands: arguments, output, and checks of the files."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from scripts.export.comparison import Runner, compare
from scripts.export.functions import Function
from scripts.export.source import Source, check_items, frame_of, predict, write_frame
from scripts.runtime.atomic_write import check_file_target
from scripts.runtime.command_line import add_config_arguments, number_from
from scripts.runtime.errors import ConfigError


class _Size(argparse.Action):
    """Store two numbers as a tuple."""

    def __call__(
        self, parser: argparse.ArgumentParser, namespace: Any, values: Any, option: Any = None
    ) -> None:
        height, width = values
        namespace.image_size = (height, width)


def add_model_arguments(parser: argparse.ArgumentParser, suffix: str) -> None:
    """Add the model and the file to write."""
    add_config_arguments(parser)
    parser.add_argument("--weights", required=True, metavar="CHECKPOINT", help="its checkpoint")
    parser.add_argument("--out", required=True, metavar="FILE", help=f"the {suffix} file to write")
    parser.add_argument(
        "--image-size",
        nargs=2,
        type=number_from(1),
        action=_Size,
        metavar=("H", "W"),
        help="size of the images in pixels (default: final_hw of the test pipeline)",
    )


def add_check_argument(parser: argparse.ArgumentParser, what: str) -> None:
    """Add `--check`."""
    parser.add_argument(
        "--check",
        nargs="?",
        const=1,
        type=number_from(1),
        metavar="SAMPLES",
        help=f"compare the predictions of {what} with the project's on SAMPLES of the config's "
        "test data (default: 1), or on random images if there is no test data; exit code 1 if "
        "they differ or predict no voxel",
    )


def add_frame_argument(parser: argparse.ArgumentParser, reader: str) -> None:
    """Add `--frame`."""
    parser.add_argument(
        "--frame",
        metavar="FILE",
        help=f"also write the inputs of a sample to this .npz file, for {reader}",
    )


def check_target(option: str, path: str, suffix: str) -> Path:
    """Return the file given by an option.

    Raises:
        ConfigError: It has another suffix, or cannot be written.
    """
    if Path(path).suffix != suffix:
        raise ConfigError(f"{option} {path} does not end in {suffix}: name such a file")
    check_file_target(option, path)
    return Path(path)


def write_sample(source: Source, path: str) -> None:
    """Write the inputs of a sample to an `.npz` file and print its origin."""
    (item,), kind = check_items(source, 1)
    write_frame(frame_of(source, item), source.head.num_cams, Path(path))
    print(f"{path}: one of {kind}")


def describe(function: Function) -> None:
    """Print the inputs and outputs of a function."""
    for title, ports in (("input ", function.inputs), ("output", function.outputs)):
        for port in ports:
            print(f"  {title} {port.name} {list(port.shape)} {port.meaning}")


def check(source: Source, runner: Runner, number: int, least: float) -> bool:
    """Print the agreement of an exported file and the project on some samples.

    Args:
        source: The model.
        runner: Runs the file.
        number: How many samples.
        least: Minimum share of equal voxels.

    Returns:
        Whether the share is reached; False if neither predicts a voxel.
    """
    items, kind = check_items(source, number)
    print(f"compared with the project on {len(items)} {kind}; {least:.1%} must be the same")
    threshold = float(source.head.score_thr)
    agreements = [
        compare(predict(source, item), runner(frame_of(source, item)), threshold) for item in items
    ]
    for agreement in agreements:
        print(f"  {agreement}")
    if not any(agreement.expected or agreement.found for agreement in agreements):
        print(
            "no voxel was predicted, so nothing was compared: use test data, or lower "
            "model.pts_bbox_head.score_thr with --cfg-options"
        )
        return False
    return all(agreement.share >= least for agreement in agreements)
