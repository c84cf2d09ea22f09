"""Draw predictions and ground truth as PNG sheets; needs neither a display nor a GPU.

    python visualize.py --config C --weights W                          # predictions
    python visualize.py --config C --weights W --vis-input --vis-gt     # with cameras and labels
    python visualize.py --config C --vis-gt                             # labels alone, no model

Each sample becomes one PNG: the six cameras, prediction, ground truth and where the two differ, in
the colours of nuScenes, with that sample's scores. An overview shows all samples drawn.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from mmengine.config import DictAction

from scripts.runtime.config import load_config
from scripts.runtime.errors import ConfigError, run_entry_point
from scripts.visualization.gallery import draw_samples, spread
from scripts.visualization.palette import PALETTES, THEMES
from scripts.visualization.sheet import SheetOptions
from scripts.visualization.source import SampleSource


def parse_arguments(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Command line of visualize.py."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--config", required=True, help="config file, see configs/")
    parser.add_argument(
        "--weights", metavar="CHECKPOINT", help="model to draw; without it use --vis-gt"
    )
    parser.add_argument("--vis-input", action="store_true", help="show the camera images")
    parser.add_argument("--vis-gt", action="store_true", help="show the ground truth")
    parser.add_argument(
        "--out", metavar="FOLDER", help="where the PNG files go (default: outputs/CONFIG'S NAME)"
    )
    which = parser.add_mutually_exclusive_group()
    which.add_argument(
        "--num",
        type=int,
        default=8,
        metavar="N",
        help="how many samples, spread evenly over the data set (default: 8)",
    )
    which.add_argument(
        "--index", type=int, nargs="+", metavar="I", help="which samples, counted from 0"
    )
    parser.add_argument(
        "--scale", type=float, default=1.0, help="size of the sheets (default: 1; posters: 3)"
    )
    parser.add_argument("--theme", choices=sorted(THEMES), default="light", help="background")
    parser.add_argument(
        "--palette",
        choices=list(PALETTES),
        default="field",
        help="class colours: nuScenes' own, or ones that colour-blind readers can tell apart",
    )
    parser.add_argument(
        "--no-difference",
        action="store_true",
        help="leave out the panel that compares prediction and ground truth",
    )
    parser.add_argument(
        "--cfg-options",
        nargs="+",
        action=DictAction,
        default={},
        metavar="KEY=VALUE",
        help="fields of the config to replace, e.g. data_root=data/nuscenes",
    )
    parser.add_argument(
        "--debug", action="store_true", help="show the traceback of every error (or OPUS_DEBUG=1)"
    )
    return parser.parse_args(arguments)


def visualize(args: argparse.Namespace) -> list[Path]:
    """Draw the samples that the arguments ask for.

    Returns:
        The files written.

    Raises:
        ConfigError: The options contradict the config or each other.
        CheckpointError: The weights cannot be read or are another model's.
    """
    if args.num < 1:
        raise ConfigError(f"--num {args.num}: draw at least one sample")
    options = SheetOptions(
        args.scale, args.theme, difference=not args.no_difference, palette=args.palette
    )
    cfg = load_config(args.config, args.cfg_options)
    source = SampleSource(cfg, args.weights, with_images=args.vis_input, with_truth=args.vis_gt)
    name = Path(args.config).stem
    indices = args.index or spread(args.num, len(source))
    indices = list(dict.fromkeys(indices))
    # Before the first minute of drawing, not after it.
    for index in indices:
        source.check_index(index)
    out = Path(args.out) if args.out is not None else Path("outputs", name)
    return draw_samples(source, indices, out, name, options)


def main(arguments: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit code."""
    args = parse_arguments(arguments)

    def run() -> None:
        visualize(args)

    return run_entry_point(run, debug=args.debug)


if __name__ == "__main__":
    sys.exit(main())
