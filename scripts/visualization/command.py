"""Command line of visualize.py, and the job that it describes."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from scripts.runtime.atomic_write import check_folder_target
from scripts.runtime.command_line import (
    CommandParser,
    add_config_arguments,
    number_from,
    run_command,
)
from scripts.runtime.config import load_config
from scripts.runtime.errors import ConfigError
from scripts.runtime.host_allocator import keep_freed_memory
from scripts.visualization.camera import VIEWS
from scripts.visualization.job import FORMATS, Job, spread
from scripts.visualization.palette import PALETTES, THEMES
from scripts.visualization.sheet import SheetOptions
from scripts.visualization.source import SampleSource, Wanted

_DESCRIPTION = """\
Pictures, films and viewers of predictions and ground truth. No display and no GPU are needed.

    python visualize.py CONFIG --weights CHECKPOINT --vis-input --vis-gt   # a model
    python visualize.py CONFIG --predictions DIR --vis-gt                  # predictions on disk
    python visualize.py CONFIG --vis-gt                                    # only ground truth
    python visualize.py ... --scene scene-0103 --format mp4 --view orbit

png: a sheet per sample (cameras, prediction, ground truth, their difference, scores), and an
overview. mp4, gif: a film per scene. rrd: a Rerun recording per scene. html: a page per scene that
opens in any browser without a network.
"""
_DEFAULT_NUM = 8
_DEFAULT_FPS = {"gif": 6.0}  # at 12 per second the file would have tens of megabytes
_DEFAULT_SCALE = {"gif": 0.5}


def command_parser() -> CommandParser:
    """Return the command line parser of visualize.py."""
    parser = CommandParser(_DESCRIPTION)
    add_config_arguments(parser)
    _add_contents(parser)
    _add_choice_of_samples(parser)
    _add_style(parser)
    parser.add_argument(
        "--out", metavar="FOLDER", help="output folder (default: outputs/CONFIG'S NAME)"
    )
    return parser


def _add_contents(parser: argparse.ArgumentParser) -> None:
    """Add the options for contents."""
    group = parser.add_argument_group("what to show")
    group.add_argument("--weights", metavar="CHECKPOINT", help="checkpoint of the model to draw")
    group.add_argument(
        "--predictions",
        metavar="DIR",
        help="draw predictions on disk, one file per sample, as saved by val.py --save-predictions",
    )
    group.add_argument("--vis-input", action="store_true", help="show the camera images")
    group.add_argument(
        "--vis-overlay",
        action="store_true",
        help="show the voxels over the camera images (png; implies --vis-input)",
    )
    group.add_argument("--vis-gt", action="store_true", help="show the ground truth")
    group.add_argument(
        "--vis-points",
        action="store_true",
        help="png: a second sheet with the points of the model's queries, layer by layer, and the "
        "places in the images that they sample",
    )
    group.add_argument(
        "--no-difference",
        action="store_true",
        help="omit the panel that compares prediction and ground truth",
    )


def _add_choice_of_samples(parser: argparse.ArgumentParser) -> None:
    """Add the options that select samples."""
    group = parser.add_argument_group("which samples").add_mutually_exclusive_group()
    group.add_argument("--scene", metavar="NAME", help="all samples of a scene")
    group.add_argument(
        "--index", type=number_from(0), nargs="+", metavar="I", help="indices of samples, from 0"
    )
    group.add_argument(
        "--num",
        type=number_from(1),
        metavar="N",
        help="number of samples, spread evenly over the data set "
        f"(default: {_DEFAULT_NUM} for png, the first scene for the other formats)",
    )


def _add_style(parser: argparse.ArgumentParser) -> None:
    """Add the options for the style."""
    group = parser.add_argument_group("how to show it")
    group.add_argument("--format", choices=list(FORMATS), default="png", help="default: png")
    group.add_argument(
        "--view", choices=list(VIEWS), default="chase", help="camera (default: chase)"
    )
    group.add_argument(
        "--scale",
        type=float,
        help="size of pictures and films (default: 1, for gif 0.5; posters: 3)",
    )
    group.add_argument(
        "--fps", type=float, help="frames per second of a film (default: 12, for gif 6)"
    )
    group.add_argument("--theme", choices=sorted(THEMES), default="light", help="background")
    group.add_argument(
        "--palette",
        choices=list(PALETTES),
        default="field",
        help="class colours: those of nuScenes, or a set for colour-blind readers",
    )


def _chosen(args: argparse.Namespace, source: SampleSource) -> list[int]:
    """Return the indices of the samples selected by the arguments."""
    if args.index is not None:
        indices = list(dict.fromkeys(args.index))
        # Check before drawing, which takes long.
        for index in indices:
            source.check_index(index)
        return indices
    if args.scene is not None:
        return source.scene(args.scene)
    if args.num is None and args.format != "png":
        return source.scene(source.moment(0).scene_name)
    return spread(args.num or _DEFAULT_NUM, len(source))


def visualize(args: argparse.Namespace) -> list[Path]:
    """Draw the samples selected by the arguments.

    Returns:
        The files written.

    Raises:
        ConfigError: The options contradict the config or each other.
        CheckpointError: The weights cannot be read or belong to another model.
    """
    fps = args.fps if args.fps is not None else _DEFAULT_FPS.get(args.format, 12.0)
    if not 1 <= fps <= 60:
        raise ConfigError(f"--fps {fps:g} is not usable: set a number from 1 to 60")
    scale = args.scale if args.scale is not None else _DEFAULT_SCALE.get(args.format, 1.0)
    options = SheetOptions(
        scale,
        args.theme,
        difference=not args.no_difference,
        palette=args.palette,
        view=args.view,
        overlay=args.vis_overlay,
    )
    name = Path(args.config).stem
    out = Path(args.out) if args.out is not None else Path("outputs", name)
    check_folder_target("--out", out)
    # The same large arrays are allocated and freed for every picture.
    keep_freed_memory()
    if args.vis_points and args.weights is None:
        raise ConfigError("--vis-points shows the queries of a model: set its --weights")
    cfg = load_config(args.config, args.cfg_options)
    # A recording contains everything.
    everything = args.format == "rrd"
    wanted = Wanted(
        images=args.vis_input or args.vis_overlay or args.vis_points,
        truth=args.vis_gt,
        lidar=everything,
        queries=args.vis_points or (everything and args.weights is not None),
    )
    source = SampleSource(cfg, args.weights, args.predictions, wanted)
    return Job(source, _chosen(args, source), out, name, args.format, options, fps).run()


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code."""

    def run(args: argparse.Namespace) -> None:
        visualize(args)

    return run_command(command_parser(), run, arguments)
