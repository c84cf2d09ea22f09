"""Time the parts of a training step against a plain implementation.

    python benchmarks/bench_train_step.py [--sizes t] [--frames 8] [--repeats 2] [--threads N]

One sample of Occ3D's grid, all frames with gradient, activation checkpointing of the backbone as
published. "plain" is `benchmarks/plain_detector.py`; "bfloat16" is ours with the image network in
mixed precision. In "ours" frozen batch norms are folded into the convolutions, and those of 3 x 3
pixels use Winograd's algorithm. The optimiser's state exists before the first step. The last table
is the backward pass of the sampling in all layers, the largest cost outside of the image network,
with the bytes that it has to move. Needs the whole environment.
"""

from __future__ import annotations

import argparse
import logging
import statistics
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from mmengine.optim import build_optim_wrapper
from mmengine.registry import MODELS, init_default_scope

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # run as a file, not as a module

from benchmarks.common import Report, medians_ms, parse_arguments, street, timed, watched_memory
from benchmarks.decoder_cases import (
    CAMS,
    CHANNELS,
    FRAMES,
    GROUPS,
    IMG_HW,
    VARIANTS,
    camera_matrices,
    feature_maps,
    sampling_points,
)
from benchmarks.model_cases import config_of, name_of
from benchmarks.plain_detector import PlainStream, plain_way
from models import ops
from models.detectors import OPUS
from models.heads import CameraGeometry
from scripts.runtime.fit import fit_config
from scripts.runtime.launch import Launch
from scripts.timings.counts import counted_operations
from scripts.timings.inputs import InputSizes, SyntheticDrive, vary_zero_weights

PARTS = ("images: normalisation", "images: forward", "decoder: forward", "losses",
         "decoder: backward", "images: backward", "optimiser")  # fmt: skip
AIM = 2.0


@dataclass
class Measured:
    """Milliseconds of every round and MiB by part."""

    ms: dict[str, list[float]] = field(default_factory=dict)
    mib: dict[str, float] = field(default_factory=dict)

    def median(self, part: str) -> float:
        return statistics.median(self.ms[part])

    @property
    def total(self) -> float:
        return sum(map(self.median, PARTS))


class Step:
    """A training step of a model in parts."""

    def __init__(self, size: str, num_frames: int, device: str) -> None:
        cfg = config_of(size, num_frames=num_frames)
        fit_config(cfg, Launch())
        init_default_scope("mmengine")
        torch.manual_seed(0)
        self.model: OPUS = MODELS.build(cfg.model)
        vary_zero_weights(self.model)
        self.model.to(device).train()
        self.optim = build_optim_wrapper(self.model, cfg.optim_wrapper)
        self.batch = SyntheticDrive(InputSizes.of(cfg)).batch(range(20, 21))
        (sample,) = self.batch["data_samples"]
        head = self.model.pts_bbox_head
        sample.voxel_semantics = street(head.grid_shape, 0.4, head.empty_label)
        sample.mask_camera = torch.rand(head.grid_shape) < 0.7

    def warm_up(self) -> None:
        """Run the image network on one frame, and make the optimiser's state."""
        images = self.model.data_preprocessor(self.batch, True)["inputs"]["img"]
        with torch.no_grad():
            self.model.extract_feat(images[:, : self.model.pts_bbox_head.num_cams], [])
        rates = [group["lr"] for group in self.optim.optimizer.param_groups]
        for group in self.optim.optimizer.param_groups:
            group["lr"] = 0.0  # nothing moves
            for parameter in group["params"]:
                parameter.grad = torch.zeros_like(parameter)
        self.optim.step()
        self.optim.zero_grad()
        for group, rate in zip(self.optim.optimizer.param_groups, rates, strict=True):
            group["lr"] = rate

    def parts(self) -> Iterator[tuple[str, Callable[[], object]]]:
        """Yield the parts in order; each has to run before the next is requested."""
        model, kept = self.model, {}

        def normalise() -> None:
            kept.update(model.data_preprocessor(self.batch, True))

        def images_forward() -> None:
            kept["feats"] = model.extract_feat(kept["inputs"]["img"], kept["data_samples"])
            kept["maps"] = [level.detach().requires_grad_() for level in kept["feats"]]

        def decoder_forward() -> None:
            samples, images = kept["data_samples"], kept["inputs"]["img"]
            geometry = CameraGeometry(
                torch.stack([sample.ego2img for sample in samples]),
                torch.stack([sample.ego2occ for sample in samples]),
                tuple(images.shape[-2:]),
            )
            with torch.autocast(images.device.type, enabled=False):
                kept["output"] = model.pts_bbox_head(kept["maps"], geometry)

        def losses() -> None:
            with torch.autocast(kept["maps"][0].device.type, enabled=False):
                found = model.pts_bbox_head.loss(kept.pop("output"), kept["data_samples"])
            kept["loss"] = torch.stack(list(found.values())).sum()

        def decoder_backward() -> None:
            kept.pop("loss").backward()

        def images_backward() -> None:
            torch.autograd.backward(kept.pop("feats"), [x.grad for x in kept.pop("maps")])

        def optimise() -> None:
            self.optim.step()
            self.optim.zero_grad()

        functions = (normalise, images_forward, decoder_forward, losses, decoder_backward,
                     images_backward, optimise)  # fmt: skip
        yield from zip(PARTS, functions, strict=True)


Way = Callable[[], AbstractContextManager[Any]]


def measure(step: Step, ways: dict[str, Way], args: argparse.Namespace) -> dict[str, Measured]:
    """Time the steps of all variants, in turns."""
    found = {name: Measured() for name in ways}
    for way in ways.values():
        with way():
            step.warm_up()
    for turn in range(args.repeats):
        for name, way in ways.items():
            with way():
                for part, function in step.parts():
                    if turn:
                        ms, _ = timed(function, args.device)
                    else:
                        with watched_memory(args.device) as peak:
                            ms, _ = timed(function, args.device)
                        found[name].mib[part] = peak[0]
                    found[name].ms.setdefault(part, []).append(ms)
    return found


def steps(size: str, args: argparse.Namespace, report: Report) -> None:
    step = Step(size, args.frames, args.device)
    stream = PlainStream(step.model)

    @contextmanager
    def bfloat16() -> Iterator[None]:
        with torch.autocast(args.device, torch.bfloat16):
            yield

    ways: dict[str, Way] = {
        "ours": nullcontext,
        "plain": lambda: plain_way(step.model, stream),
        "bfloat16": bfloat16,
    }
    found = measure(step, ways, args)
    report.table([f"{name_of(size)}, {args.frames} frames", *(f"{n} ms" for n in ways),
                  *(f"{n} MiB" for n in ways)])  # fmt: skip
    for part in PARTS:
        times = [f"{found[name].median(part):.0f}" for name in ways]
        report.row(part, *times, *(f"{found[name].mib[part]:.0f}" for name in ways))
    report.row("step", *(f"{found[name].total:.0f}" for name in ways), *[""] * len(ways))
    report.line("")
    gigaflop = image_gigaflop(step)
    floor = 1e3 * gigaflop / report.gigaflops
    report.line(
        f"Convolutions of the image network: {gigaflop:.0f} GFLOP a step, {floor:.0f} ms at the"
        f" rate of the matrix product above; ours needs"
        f" {found['ours'].median(PARTS[1]) + found['ours'].median(PARTS[5]):.0f} ms.\n"
    )
    plain = found["plain"].total
    report.line(
        f"With only these a step would be {plain / floor:.2f} times as fast as the plain one. Going"
        f" below this needs fewer multiplications: Winograd's algorithm needs a quarter of them"
        f" for 3 x 3 convolutions.\n"
    )
    report.aim(f"train_step:{name_of(size)}_over_plain", plain / found["ours"].total, AIM)
    report.aim(
        f"train_step:{name_of(size)}_bfloat16_over_plain", plain / found["bfloat16"].total, AIM
    )


def image_gigaflop(step: Step) -> float:
    """Return GFLOP of the image network, forward and backward, from those of one frame."""
    images = step.model.data_preprocessor(step.batch, False)["inputs"]["img"]
    one = images[:, : step.model.pts_bbox_head.num_cams]
    frames = images.shape[1] // one.shape[1]
    with counted_operations() as counter:
        feats = step.model.extract_feat(one, [])
        torch.autograd.backward(feats, [torch.ones_like(level) for level in feats])
    step.optim.zero_grad()
    return 1e-9 * counter.get_total_flops() * frames


def sampling_backward(size: str, args: argparse.Namespace, report: Report) -> None:
    """Time the backward pass of all layers' sampling, as a step runs it, with its bytes."""
    variant = VARIANTS[size]
    layers = len(variant.refined)
    feats = [x.to(args.device).requires_grad_() for x in feature_maps(True)]
    maps = ops.SharedMaps(feats)
    occ2img = camera_matrices()[None].to(args.device)
    leaves, outputs = list(feats), []
    for _ in range(layers):
        points = sampling_points(variant).to(args.device).requires_grad_()
        shape = (1, variant.queries, GROUPS, variant.points, len(feats))
        weights = torch.randn(shape).softmax(-1).to(args.device).requires_grad_()
        outputs.append(ops.multi_view_sampling(maps, points, occ2img, weights, IMG_HW, CAMS))
        leaves += [points, weights]
    grads = [torch.randn_like(out) for out in outputs]

    def backward() -> bool:
        return bool(torch.autograd.grad(outputs, leaves, grads, retain_graph=True))

    (ms,) = medians_ms([backward], args.repeats + 2, args.device)
    zeros = 4e-9 * sum(x.numel() for x in feats)
    (of_zeros,) = medians_ms(
        [lambda: [torch.zeros_like(x) for x in feats]], args.repeats + 2, args.device
    )
    reads = layers * variant.queries * GROUPS * variant.points * FRAMES * 4 * len(feats)
    texels = 4e-9 * reads * CHANNELS / GROUPS
    # gradients of the maps are zeroed once; texels are read, their gradients read and written
    moved = zeros + 3 * texels + 4e-9 * sum(grad.numel() for grad in grads)
    report.table(["sampling's backward, all layers", "ms", "of that, zeros of the maps",
                  "GB moved at least", "floor ms", "of the ceiling"])  # fmt: skip
    floor = 1e3 * moved / report.bandwidth
    report.row(f"{variant.name}, {layers} layers, {FRAMES} frames", f"{ms:.0f}", f"{of_zeros:.0f}",
               f"{moved:.2f} ({zeros:.2f} zeros)", f"{floor:.0f}",
               f"{floor / ms:.0%} of GB/s")  # fmt: skip


def main() -> None:
    args = parse_arguments(__doc__, repeats=2, sizes="t", frames=8)
    logging.disable(logging.WARNING)  # MMEngine logs every parameter
    report = Report("train_step", args)
    for size in args.sizes.split(","):
        steps(size, args, report)
        if size in VARIANTS:
            sampling_backward(size, args, report)
    report.end()


if __name__ == "__main__":
    main()
