"""Time exported models in onnxruntime and as a compiled program against the project.

    python benchmarks/bench_onnx.py [--sizes nano,t] [--threads N] [--repeats N] [--program 1]

One sample of random images, evaluation mode, batch 1, random weights: the image network of one
frame, and everything after it. A new frame of a stream costs the sum of both rows. Needs the
whole environment and requirements/onnx.txt.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from mmengine.config import Config
from mmengine.registry import MODELS, init_default_scope
from torch import nn

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # run as a file, not as a module

import models.register
from benchmarks.common import Report, parse_arguments, timings
from scripts.export.comparison import OnnxRunner, compare
from scripts.export.functions import functions_of
from scripts.export.graphs import Decoder, ImageNetwork, Layout, Voxels
from scripts.export.interface import geometry_tensors
from scripts.export.onnx_model import save_onnx, to_onnx
from scripts.export.program import ProgramRunner, program_functions, write_program
from scripts.export.source import Frame, Source, frame_of, random_item
from scripts.runtime.config import load_config

CONFIGS = {
    "nano": "configs/toy/opusv2-nano_toy.py",
    "t": "configs/opusv2_nusc-occ3d/opusv2-t_r50_704x256_8f_nusc-occ3d_50e.py",
    "v1t": "configs/opusv1_nusc-occ3d/opusv1-t_r50_704x256_8f_nusc-occ3d_100e.py",
}


def build_source(size: str) -> Source:
    assert models.register
    cfg: Config = load_config(CONFIGS[size])
    init_default_scope("mmengine")
    model = cfg.model
    for part in (model.img_backbone, model.img_neck):
        part.init_cfg = None
    detector = MODELS.build(model).eval()
    for name, parameter in detector.named_parameters():
        # weights that start at zero would make all queries equal
        if name.endswith(("parameter_generator.weight", "sampling_offset.weight")):
            nn.init.normal_(parameter, std=0.02)
    detector.pts_bbox_head.score_thr = 0.0  # so that all voxels are compared
    step = next(s for s in cfg.test_dataloader.dataset.pipeline if s.get("final_hw"))
    return Source(detector, tuple(step["final_hw"]), config=CONFIGS[size])


class Project:
    """The detector's own functions, with the native operations."""

    def __init__(self, source: Source) -> None:
        self.image = ImageNetwork(source.detector, Layout.CHANNELS_LAST)
        self.decoder = Decoder(source.detector, source.image_hw, Layout.CHANNELS_LAST)

    @torch.no_grad()
    def features(self, images: torch.Tensor) -> list[torch.Tensor]:
        return self.image(images)

    @torch.no_grad()
    def decode(self, levels: list[torch.Tensor], frame: Frame) -> Voxels:
        return self.decoder(levels, frame.occ2img, frame.lidar)


Pair = tuple[Callable[[], Any], Callable[[], Any]]


def project_pair(source: Source, frame: Frame, one: torch.Tensor) -> Pair:
    project = Project(source)
    levels = [level.repeat(source.head.num_frames, 1, 1, 1) for level in project.features(one)]
    return lambda: project.features(one), lambda: project.decode(levels, frame)


def onnx_pair(source: Source, frame: Frame, one: torch.Tensor, args: Any, folder: Path) -> Pair:
    files = [
        save_onnx(to_onnx(source, function), function.path(folder / "model.onnx"))
        for function in functions_of(source, Layout.STACKED, split=True)
    ]
    runner = OnnxRunner(files, source.head.num_cams, args.threads)
    levels = [level.repeat(source.head.num_frames, 0) for level in runner.features(one)]
    arrays = [*levels, *(tensor.numpy() for tensor in geometry_tensors(frame))]
    return lambda: runner.features(one), lambda: runner.decode(arrays)


def program_pair(source: Source, frame: Frame, one: torch.Tensor, folder: Path) -> Pair:
    path = write_program(source, program_functions(source), folder / "model.pt2")
    runner = ProgramRunner(path, source.head.num_cams)

    @torch.no_grad()
    def features() -> list[torch.Tensor]:
        return list(runner.image(one))

    @torch.no_grad()
    def decode() -> Voxels:
        return Voxels(*runner.decoder(*levels, *geometry_tensors(frame)))

    levels = [level.repeat(source.head.num_frames, 1, 1, 1) for level in features()]
    return features, decode


def measure(report: Report, size: str, args: argparse.Namespace, folder: Path) -> None:
    source = build_source(size)
    frame = frame_of(source, random_item(source))
    one = frame.images[: source.head.num_cams]
    pairs = {"project": project_pair(source, frame, one)}
    pairs["onnxruntime"] = onnx_pair(source, frame, one, args, folder)
    if args.program:
        pairs["program"] = program_pair(source, frame, one, folder)
    for index, what in enumerate(("image network, one frame", "decoder and head")):
        measured = timings([pair[index] for pair in pairs.values()], args.repeats, "cpu")
        by_name = dict(zip(pairs, measured, strict=True))
        for name, timing in by_name.items():
            same = ""
            if index == 1:
                agreement = compare(by_name["project"].result, timing.result)
                same = f"{agreement.share:.3%} of {agreement.expected}"
                if agreement.share < 1:
                    print(f"{size}, {name}: {agreement}", file=sys.stderr)
            ratio = by_name["project"].ms / timing.ms
            report.row(size, what, name, f"{timing.ms:.1f}", f"{ratio:.2f}", same)


def main() -> None:
    args = parse_arguments(__doc__, repeats=7, sizes="nano", program=0)
    report = Report("onnx", args)
    report.table(["model", "part", "runtime", "ms", "times the project's speed", "same voxels"])
    for size in args.sizes.split(","):
        with tempfile.TemporaryDirectory() as folder:
            measure(report, size, args, Path(folder))
    report.end()


if __name__ == "__main__":
    main()
