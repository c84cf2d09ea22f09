"""Make a small procedural data set in the nuScenes layout.

It has images, LiDAR, boxes, and labels of Occ3D, OpenOccupancy and SurroundOcc.

Example:
    python scripts/make_toy_nuscenes.py --out data/toy_nuscenes
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from pathlib import Path

from scripts.runtime.atomic_write import check_folder_target
from scripts.runtime.command_line import CommandParser, number_from, run_command
from scripts.toy_nuscenes.options import LIDAR_RATES_HZ, Options


def _size(text: str) -> tuple[int, int]:
    try:
        width, height = (int(part) for part in text.lower().split("x"))
    except ValueError as error:
        raise argparse.ArgumentTypeError(
            f"expected WIDTHxHEIGHT such as 400x225, got {text!r}"
        ) from error
    return width, height


def command_parser() -> CommandParser:
    """Return the command line parser of the generator."""
    default = Options()
    parser = CommandParser(
        (__doc__ or "").split("\n\n")[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    add = parser.add_argument
    add("--out", type=Path, default=Path("data/toy_nuscenes"), help="data root to write")
    scenes = "number of scenes: up to 10 make v1.0-mini (8 train, 2 val), more v1.0-trainval"
    add("--scenes", type=int, default=default.scenes, help=scenes)
    add("--samples", type=int, default=default.samples, help="key frames per scene, 0.5 s apart")
    size = "image size in pixels"
    add("--image-size", type=_size, default=default.image_size, metavar="WxH", help=size)
    add("--seed", type=int, default=default.seed, help="seed of all randomness")
    rate = "LiDAR sweeps per second; nuScenes has 20, the default is lower to save space"
    add("--lidar-hz", type=int, default=default.lidar_hz, choices=LIDAR_RATES_HZ, help=rate)
    turn = "LiDAR firings per turn, 32 beams each"
    add("--lidar-azimuths", type=int, default=default.lidar_azimuths, help=turn)
    add("--jpeg-quality", type=int, default=default.jpeg_quality, help="1 to 100")
    workers = "worker processes; 0 uses the main process; the files do not depend on it"
    add("--workers", type=number_from(0), default=2, help=workers)
    replace = "replace a data set that was made with other options"
    add("--overwrite", action="store_true", help=replace)
    return parser


def _options(args: argparse.Namespace) -> Options:
    width, height = args.image_size
    return Options(
        scenes=args.scenes,
        samples=args.samples,
        width=width,
        height=height,
        seed=args.seed,
        lidar_hz=args.lidar_hz,
        lidar_azimuths=args.lidar_azimuths,
        jpeg_quality=args.jpeg_quality,
    )


def _generate(args: argparse.Namespace, options: Options) -> None:
    # Imported late: errors in options and --help must not wait for torch.
    from tqdm import tqdm

    from scripts.toy_nuscenes.writer import generate

    check_folder_target("--out", args.out)
    start = time.monotonic()
    total = options.scenes * options.samples
    with tqdm(total=total, desc="toy nuScenes", unit="key frame", delay=1.0) as bar:
        worked = generate(
            args.out, options, workers=args.workers, overwrite=args.overwrite, progress=bar.update
        )
        bar.update(0 if worked else total)
    if not worked:
        print(f"{args.out} is complete already, nothing to do")
        return
    megabytes = sum(p.stat().st_size for p in args.out.rglob("*") if p.is_file()) / 1e6
    seconds = time.monotonic() - start
    print(f"{args.out}: {options.scenes} scenes, {megabytes:.0f} MB, {seconds:.0f} s")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code."""
    return run_command(
        command_parser(),
        lambda args: _generate(args, _options(args)),
        arguments,
        interrupted="interrupted; finished scenes are kept, run the same command again to continue",
    )
