"""Matching and location loss of a training step of V2-T, forward and backward.

    python benchmarks/bench_chamfer.py [--device cpu|cuda] [--repeats N] [--decoder 1] [--save]

Six terms: the initial points (600) and five layers (600 queries of 8, 16, 32, 64, 128 points)
against 40,000 voxels of a street, whose tree is built once. "Plain terms" shares the searches with
ours: it differs by the SmoothL1 distances alone, which are timed by themselves as well, as are the
searches. ``--decoder 1`` also times the forward pass of the whole decoder (8 frames of 6 cameras,
704 x 256) for the aim; it needs mmengine.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # run as a file, not as a module

from benchmarks.bench_nearest_neighbor import points
from benchmarks.common import Report, parse_arguments, timings
from models.ops import PointTree, chamfer_terms, chamfer_terms_reference, nearest_neighbor

BETA = 0.2
LAYERS = (1, 8, 16, 32, 64, 128)


Matches = list[tuple[Tensor, Tensor]]


def match(layers: list[Tensor], voxels: Tensor, shared: bool = True) -> Matches:
    """Nearest voxel of every point and nearest point of every voxel, for all layers."""
    tree, matches = PointTree(voxels), []
    for pred in layers:
        if not shared:
            tree = PointTree(voxels)
        to_pred, _ = nearest_neighbor(voxels, pred.detach())
        matches.append((tree.nearest(pred)[0], to_pred))
    return matches


def loss(
    layers: list[Tensor], voxels: Tensor, matches: Matches, native: bool
) -> tuple[Tensor, ...]:
    """All terms forward and backward; returns the gradients."""
    terms_of = chamfer_terms if native else chamfer_terms_reference
    total = torch.zeros((), device=voxels.device)
    for pred, (to_voxels, to_pred) in zip(layers, matches, strict=True):
        total = total + terms_of(pred, voxels, to_voxels, BETA).mean()
        total = total + terms_of(voxels, pred, to_pred, BETA).mean()
    return torch.autograd.grad(total, layers)


def decoder_forward(device: str) -> float:
    """Milliseconds of V2-T's decoder, forward."""
    from mmengine.config import Config
    from mmengine.registry import MODELS

    import models.register  # noqa: F401

    config = Config.fromfile("configs/opusv2_nusc-occ3d/opusv2-t_r50_704x256_8f_nusc-occ3d_100e.py")
    head = MODELS.build(config.model.pts_bbox_head).eval().to(device)
    feats = [torch.randn(1, 48, 256, 256 // s, 704 // s, device=device) for s in (4, 8, 16, 32)]
    focal, matrices = 0.8 * 704, []
    for n in range(48):
        angle = torch.tensor(n * torch.pi / 3)
        s, c = angle.sin(), angle.cos()
        pose = torch.tensor([[s, -c, 0, 0], [0, 0, -1, 1.5], [c, s, 0, 0.3], [0, 0, 0, 1]])
        pixel = torch.eye(4)
        pixel[0, 0] = pixel[1, 1] = focal
        pixel[0, 2], pixel[1, 2] = 352, 128
        matrices.append(pixel @ pose)
    occ2img = torch.stack(matrices)[None].to(device)
    start = head.init_points.weight.view(1, -1, 1, 3)

    begin = time.perf_counter()
    with torch.no_grad():
        head.transformer["decoder"](start, feats, occ2img, (256, 704), None)
    if device == "cuda":
        torch.cuda.synchronize()
    return 1e3 * (time.perf_counter() - begin)


def main() -> None:
    args = parse_arguments(__doc__, repeats=5, decoder=0)
    report = Report("chamfer", args)
    pred, voxels = (x.to(args.device) for x in points((200, 200, 16), 0.4, 40_000))
    layers = [pred.view(600, 128, 3)[:, :n].reshape(-1, 3).requires_grad_() for n in LAYERS]
    matches = match(layers, voxels)
    calls: dict[str, Callable[[], object]] = {
        "ours": lambda: loss(layers, voxels, match(layers, voxels), True),
        "a tree for every term": lambda: loss(layers, voxels, match(layers, voxels, False), True),
        "plain terms": lambda: loss(layers, voxels, match(layers, voxels), False),
        "searches alone, trees with them": lambda: match(layers, voxels),
        "terms alone, ours": lambda: loss(layers, voxels, matches, True),
        "terms alone, plain": lambda: loss(layers, voxels, matches, False),
    }
    measured = timings(list(calls.values()), args.repeats, args.device)
    report.note_runs("step", dict(zip(calls, measured, strict=True)))
    report.tell_runs()
    times = {case: timing.ms for case, timing in zip(calls, measured, strict=True)}
    report.table(["step of six terms", "ms"])
    for case, time_ms in times.items():
        report.row(case, f"{time_ms:.1f}")
    plain = times["terms alone, plain"] / times["terms alone, ours"]
    report.aim("chamfer:terms_speed_over_plain", plain, 1)
    if args.decoder:
        decoder = decoder_forward(args.device)
        report.row("decoder, forward", f"{decoder:.0f}")
        report.aim("chamfer:decoder_forward_over_matching_and_loss", decoder / times["ours"], 10)
    report.end()


if __name__ == "__main__":
    main()
