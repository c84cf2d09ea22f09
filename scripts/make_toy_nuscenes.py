"""Makes a small procedural data set in the nuScenes layout: images, LiDAR, boxes, Occ3D and
OpenOccupancy labels.

Example:
    python scripts/make_toy_nuscenes.py --out data/toy_nuscenes
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

sys.path.insert(
    0, str(Path(__file__).resolve().parents[1])
)  # so that it runs as a script from anywhere

from scripts.toy_nuscenes.options import LIDAR_RATES_HZ, Options


def _size(text: str) -> tuple[int, int]:
    try:
        width, height = (int(part) for part in text.lower().split('x'))
    except ValueError as error:
        raise argparse.ArgumentTypeError(
            f'expected WIDTHxHEIGHT such as 400x225, got {text!r}'
        ) from error
    return width, height


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """Parses the command line."""
    default = Options()
    parser = argparse.ArgumentParser(
        description=__doc__.split('\n')[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument(
        '--out', type=Path, default=Path('data/toy_nuscenes'), help='data root to write'
    )
    parser.add_argument(
        '--scenes',
        type=int,
        default=default.scenes,
        help='number of scenes; up to 10 make v1.0-mini (8 train, 2 val), more make v1.0-trainval',
    )
    parser.add_argument(
        '--samples', type=int, default=default.samples, help='key frames per scene, 0.5 s apart'
    )
    parser.add_argument(
        '--image-size',
        type=_size,
        default=default.image_size,
        metavar='WxH',
        help='image size in pixels',
    )
    parser.add_argument('--seed', type=int, default=default.seed, help='seed of everything random')
    parser.add_argument(
        '--lidar-hz',
        type=int,
        default=default.lidar_hz,
        choices=LIDAR_RATES_HZ,
        help='LiDAR sweeps per second; nuScenes has 20, the default is thinned to save space',
    )
    parser.add_argument(
        '--lidar-azimuths',
        type=int,
        default=default.lidar_azimuths,
        help='LiDAR firings per turn, 32 beams each',
    )
    parser.add_argument('--jpeg-quality', type=int, default=default.jpeg_quality, help='1 to 100')
    parser.add_argument(
        '--workers',
        type=int,
        default=2,
        help='worker processes; 0 works in the main one; the files do not depend on it',
    )
    parser.add_argument(
        '--overwrite',
        action='store_true',
        help='replace a data set that was made with other options',
    )
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> int:
    """Runs the command; returns the exit status."""
    args = parse_args(argv)
    try:
        width, height = args.image_size
        options = Options(
            scenes=args.scenes,
            samples=args.samples,
            width=width,
            height=height,
            seed=args.seed,
            lidar_hz=args.lidar_hz,
            lidar_azimuths=args.lidar_azimuths,
            jpeg_quality=args.jpeg_quality,
        )
        if args.workers < 0:
            raise ValueError(f'--workers must not be negative, got {args.workers}')
        from tqdm import tqdm

        from scripts.toy_nuscenes.writer import (
            generate,
        )  # slow to import: not for --help or wrong options

        start = time.monotonic()
        with tqdm(
            total=options.scenes * options.samples, desc='toy nuScenes', unit='key frame'
        ) as bar:
            worked = generate(
                args.out,
                options,
                workers=args.workers,
                overwrite=args.overwrite,
                progress=bar.update,
            )
            if not worked:
                bar.update(bar.total)
    except (ValueError, RuntimeError, OSError) as error:
        print(f'error: {error}', file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print(
            'interrupted; finished scenes are kept, run the same command again to go on',
            file=sys.stderr,
        )
        return 130
    if not worked:
        print(f'{args.out} is complete already, nothing to do')
        return 0
    megabytes = sum(p.stat().st_size for p in args.out.rglob('*') if p.is_file()) / 1e6
    seconds = time.monotonic() - start
    print(f'{args.out}: {options.scenes} scenes, {megabytes:.0f} MB, {seconds:.0f} s')
    return 0


if __name__ == '__main__':
    sys.exit(main())
