"""Predict the occupancy around a vehicle from its images, and write files.

    python scripts/predict.py CONFIG --weights CHECKPOINT --frames FOLDER --out DIR --format html
    python scripts/predict.py CONFIG --weights CHECKPOINT --frames INFO.pkl --out DIR --format npz

FOLDER holds images by camera and `rig.yaml`, the calibration of the cameras (docs/inference.md).
INFO.pkl is an info file in the folder of its data set; its key frames are predicted with the
history that the data set selects. No labels are needed. npz and ply: a file per frame, with the
name of the frame. html: a page per recording.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from models.errors import does_not_exist
from scripts.inference.files import write_npz, write_ply
from scripts.inference.inferencer import OccupancyInferencer
from scripts.inference.info_frames import InfoFrames
from scripts.inference.result import OccupancyResult
from scripts.inference.rig_files import read_recording
from scripts.prediction.frames import Frame
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

FORMATS = ("npz", "ply", "html")


@dataclass(frozen=True)
class _Clip:
    """A recording: its name, and its frames with flags of those to predict."""

    name: str
    frames: Iterable[tuple[Frame, bool]]


def command_parser() -> CommandParser:
    """Return the command line of predict.py."""
    parser = CommandParser(__doc__)
    add_config_arguments(parser)
    parser.add_argument(
        "--weights", required=True, metavar="CHECKPOINT", help=".pth or .safetensors"
    )
    parser.add_argument(
        "--frames", required=True, metavar="FOLDER|INFO", help="what to predict, see above"
    )
    parser.add_argument("--out", required=True, metavar="DIR", help="output folder")
    parser.add_argument("--format", choices=FORMATS, default="npz", help="default: npz")
    parser.add_argument(
        "--rig", metavar="FILE", help="calibrations of a FOLDER (default: rig.yaml in it)"
    )
    parser.add_argument(
        "--dense", action="store_true", help="npz: a label grid as in Occ3D, not occupied voxels"
    )
    parser.add_argument("--mesh", action="store_true", help="ply: faces of voxels, not points")
    parser.add_argument("--device", help="cpu, cuda or cuda:N (default: the GPU, if there is one)")
    parser.add_argument(
        "--num", type=number_from(1), metavar="N", help="predict only the first N frames"
    )
    return parser


def predict(args: argparse.Namespace) -> list[Path]:
    """Predict the frames given by the arguments.

    Returns:
        The files written.

    Raises:
        ConfigError: The options contradict each other.
        FrameError: A frame or the rig file cannot be used.
    """
    if args.dense and args.format != "npz":
        raise ConfigError("--dense is an option of --format npz: leave it out")
    if args.mesh and args.format != "ply":
        raise ConfigError("--mesh is an option of --format ply: leave it out")
    source, out = Path(args.frames), Path(args.out)
    if not source.exists():
        raise ConfigError(
            f"--frames {does_not_exist(source)}: give a folder of images with rig.yaml, or an info "
            "file"
        )
    check_folder_target("--out", out)
    keep_freed_memory()
    inferencer, clips = _from_folder(args) if source.is_dir() else _from_infos(args)
    left = args.num
    files: list[Path] = []
    for clip in clips:
        inferencer.reset()
        results: list[OccupancyResult] = []
        frames: list[Frame] = []
        for frame, is_predicted in clip.frames:
            if left == 0:
                break
            if not is_predicted:
                inferencer.observe(frame)
                continue
            result = inferencer.push(frame)
            left = None if left is None else left - 1
            if args.format == "html":
                results.append(result)
                frames.append(frame)
            else:
                files.append(_write(result, out, args))
            note = ""
            if result.dropped_cameras:
                note = f"  (no image of {', '.join(result.dropped_cameras)})"
            print(f"{clip.name}: {result.name}  {len(result):,} voxels{note}")
        if results:
            from scripts.inference.pictures import write_page

            files.append(write_page(results, out / f"{clip.name}.html", frames))
        if left == 0:
            break
    print(f"{len(files)} files in {out}")
    return files


def _write(result: OccupancyResult, out: Path, args: argparse.Namespace) -> Path:
    path = out / f"{result.name}.{args.format}"
    if args.format == "npz":
        return write_npz(result, path, dense=args.dense)
    return write_ply(result, path, mesh=args.mesh)


def _from_folder(args: argparse.Namespace) -> tuple[OccupancyInferencer, list[_Clip]]:
    recording = read_recording(args.frames, args.rig)
    cfg = load_config(args.config, args.cfg_options)
    cameras: Sequence[str] | None = None
    if set(cfg.get("cameras") or ()) != set(recording.cameras):
        cameras = recording.cameras
    inferencer = OccupancyInferencer(
        args.config, args.weights, args.device, cameras=cameras, cfg_options=args.cfg_options
    )
    return inferencer, [_Clip(recording.name, ((frame, True) for frame in recording))]


def _from_infos(args: argparse.Namespace) -> tuple[OccupancyInferencer, list[_Clip]]:
    if args.rig is not None:
        raise ConfigError("--rig is an option of a FOLDER: an info file has its calibrations")
    cfg = load_config(args.config, args.cfg_options)
    infos = InfoFrames(cfg, args.frames)
    inferencer = OccupancyInferencer(cfg, args.weights, args.device, history="count")
    clips = [
        _Clip(name, ((each.frame, each.is_key) for each in infos.frames(rows)))
        for name, rows in infos.scenes().items()
    ]
    return inferencer, clips


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code."""

    def run(args: argparse.Namespace) -> None:
        predict(args)

    return run_command(command_parser(), run, arguments)
