"""Draw network inputs of samples: augmented, with labels and LiDAR points projected.

    python scripts/browse_dataset.py CONFIG [--num N] [--out DIR] [--split train|val]

A picture per sample shows the input images after crop, flips and colour distortion. The centres of
occupied voxels and the LiDAR points are projected into them by the sample's own matrices, and the
labels are drawn from above. If points and images do not match, images and matrices disagree.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from scripts.runtime.atomic_write import check_folder_target, write_atomically
from scripts.runtime.command_line import (
    CommandParser,
    add_config_arguments,
    number_from,
    run_command,
)
from scripts.runtime.config import load_config
from scripts.runtime.errors import ConfigError
from scripts.visualization.augmented_sample import AugmentedSource, compose
from scripts.visualization.job import spread


def command_parser() -> CommandParser:
    """Return the command line parser of browse_dataset.py."""
    parser = CommandParser(__doc__)
    add_config_arguments(parser)
    parser.add_argument("--split", choices=("train", "val"), default="train")
    choice = parser.add_mutually_exclusive_group()
    choice.add_argument(
        "--num",
        type=number_from(1),
        default=8,
        metavar="N",
        help="number of samples, spread evenly over the split (default: 8)",
    )
    choice.add_argument(
        "--index", type=number_from(0), nargs="+", metavar="I", help="indices of samples, from 0"
    )
    parser.add_argument(
        "--epoch", type=number_from(0), default=0, help="epoch of the random values (default: 0)"
    )
    parser.add_argument("--all-frames", action="store_true", help="draw the history too")
    parser.add_argument(
        "--out", metavar="DIR", help="default: outputs/NAME OF THE CONFIG/SPLIT_samples"
    )
    return parser


def browse(args: argparse.Namespace) -> None:
    """Draw the samples selected by the arguments."""
    out = Path(args.out or Path("outputs", Path(args.config).stem, f"{args.split}_samples"))
    check_folder_target("--out", out)
    source = AugmentedSource(load_config(args.config, args.cfg_options), args.split, args.epoch)
    indices = spread(args.num, len(source)) if args.index is None else args.index
    for index in indices:
        if index >= len(source):
            raise ConfigError(f"--index {index}: the split has samples 0 to {len(source) - 1}")
    for index in indices:
        sample = source[index]
        picture = compose(sample, args.all_frames)
        print(write_atomically(out / f"{sample.file_stem}.png", picture.save), flush=True)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code."""
    return run_command(command_parser(), browse, arguments)
