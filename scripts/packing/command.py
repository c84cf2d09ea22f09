"""Write the images of a config's data sets once, at the largest size that the augmentation needs.

    python scripts/pack_images.py --config CONFIG --out DIR [--workers N] [--estimate]

DIR becomes a data root: set data_root to it. Images are cropped and resized to what the config's
DrawImageAug can reach, and stored as JPEG. Occ3D labels and rows of voxels (OpenOccupancy,
SurroundOcc) are stored without compression. Everything else is linked. Existing files are kept, so
an interrupted run continues. --estimate packs a few files, writes nothing, and prints size and
time.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from scripts.packing.plan import plan_packing
from scripts.packing.writer import DEFAULT_QUALITY, estimate, pack
from scripts.runtime.atomic_write import check_folder_target
from scripts.runtime.command_line import (
    CommandParser,
    add_config_arguments,
    number_from,
    run_command,
)
from scripts.runtime.config import load_config
from scripts.runtime.errors import ConfigError

_MAX_QUALITY = 100


def command_parser() -> CommandParser:
    """Return the command line of the packer."""
    parser = CommandParser(__doc__)
    add_config_arguments(parser)
    add = parser.add_argument
    add("--out", type=Path, required=True, metavar="DIR", help="data root to write")
    quality = f"JPEG quality, 1 to {_MAX_QUALITY} (default: {DEFAULT_QUALITY})"
    add("--quality", type=number_from(1), default=DEFAULT_QUALITY, help=quality)
    add("--workers", type=number_from(0), default=2, help="processes (default: 2)")
    add("--estimate", action="store_true", help="write nothing, print size and time")
    return parser


def _run(args: argparse.Namespace) -> None:
    if args.quality > _MAX_QUALITY:
        raise ConfigError(f"--quality {args.quality}: use a number from 1 to {_MAX_QUALITY}")
    check_folder_target("--out", args.out)
    plan = plan_packing(load_config(args.config, args.cfg_options), args.config, args.quality)
    if args.estimate:
        print(estimate(plan, max(1, args.workers)))
        return
    made, kept = pack(plan, args.out, args.workers)
    print(f"{args.out}: {made} files packed, {kept} existed; set data_root to it")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code."""
    return run_command(
        command_parser(),
        _run,
        arguments,
        interrupted="interrupted; packed files are kept, run the same command again to continue",
    )
