"""Time matching and location loss of a training step of V2-T, forward and backward.

    python benchmarks/bench_chamfer.py [--device cpu|cuda] [--repeats N] [--save]

Six terms: the initial points (600) and five layers (600 queries of 8, 16, 32, 64, 128 points)
against 40,000 voxels of a street, whose tree is built once. "plain terms" uses the same searches as
"ours", and the reference implementation of the SmoothL1 distances. Searches and distances are also
timed separately. If mmengine is installed, the decoder's forward pass in training (8 frames of 6
cameras, 704 x 256) is timed for the aim.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # run as a file, not as a module

from benchmarks.bench_nearest_neighbor import points
from benchmarks.common import Report, parse_arguments, timings
from benchmarks.decoder_cases import IMG_HW, camera_matrices, feature_maps
from models.ops import PointTree, chamfer_terms, chamfer_terms_reference, nearest_neighbor

BETA = 0.2
LAYERS = (1, 8, 16, 32, 64, 128)


Matches = list[tuple[Tensor, Tensor]]


def match(layers: list[Tensor], voxels: Tensor, shared: bool = True) -> Matches:
    """Return the nearest voxel of every point and nearest point of every voxel, for all layers."""
    tree, matches = PointTree(voxels), []
    for pred in layers:
        if not shared:
            tree = PointTree(voxels)
        own = PointTree(pred)
        matches.append((tree.nearest(own)[0], own.nearest(tree)[0]))
    return matches


def match_apart(layers: list[Tensor], voxels: Tensor) -> Matches:
    """Return the same with separate searches, queries in the order of their tensors."""
    tree = PointTree(voxels)
    return [(tree.nearest(pred)[0], nearest_neighbor(voxels, pred.detach())[0]) for pred in layers]


def loss(
    layers: list[Tensor], voxels: Tensor, matches: Matches, native: bool
) -> tuple[Tensor, ...]:
    """Compute all terms forward and backward; return the gradients."""
    terms_of = chamfer_terms if native else chamfer_terms_reference
    total = torch.zeros((), device=voxels.device)
    for pred, (to_voxels, to_pred) in zip(layers, matches, strict=True):
        total = total + terms_of(pred, voxels, to_voxels, BETA).mean()
        total = total + terms_of(voxels, pred, to_pred, BETA).mean()
    return torch.autograd.grad(total, layers)


def decoder_forward(device: str) -> Callable[[], object]:
    """Return a forward pass of V2-T's decoder in training mode, with the autograd graph."""
    from benchmarks.bench_decoder import build_head

    head = build_head("t").train().to(device)
    feats = [x.to(device).requires_grad_() for x in feature_maps(True)]
    occ2img = camera_matrices()[None].to(device)
    start = head.init_points.weight.view(1, -1, 1, 3)
    return lambda: head.transformer["decoder"](start, feats, occ2img, IMG_HW, None)


def main() -> None:
    args = parse_arguments(__doc__, repeats=5)
    report = Report("chamfer", args)
    pred, voxels = (x.to(args.device) for x in points((200, 200, 16), 0.4, 40_000))
    layers = [pred.view(600, 128, 3)[:, :n].reshape(-1, 3).requires_grad_() for n in LAYERS]
    matches = match(layers, voxels)
    calls: dict[str, Callable[[], object]] = {
        "ours": lambda: loss(layers, voxels, match(layers, voxels), True),
        "a tree for every term": lambda: loss(layers, voxels, match(layers, voxels, False), True),
        "plain terms": lambda: loss(layers, voxels, match(layers, voxels), False),
        "only searches, with trees": lambda: match(layers, voxels),
        "only searches, without query trees": lambda: match_apart(layers, voxels),
        "only terms, ours": lambda: loss(layers, voxels, matches, True),
        "only terms, plain": lambda: loss(layers, voxels, matches, False),
    }
    if find_spec("mmengine") is not None:
        calls["the decoder, forward"] = decoder_forward(args.device)
    measured = timings(list(calls.values()), args.repeats, args.device)
    report.note_runs("step", dict(zip(calls, measured, strict=True)))
    report.write_runs()
    times = {case: timing.ms for case, timing in zip(calls, measured, strict=True)}
    report.table(["step of six terms", "ms"])
    for case, time_ms in times.items():
        report.row(case, f"{time_ms:.1f}")
    plain = times["only terms, plain"] / times["only terms, ours"]
    report.aim("chamfer:terms_speed_over_plain", plain, 1)
    if "the decoder, forward" in times:
        ratio = times["the decoder, forward"] / times["ours"]
        report.aim("chamfer:decoder_forward_over_matching_and_loss", ratio, 10)
    report.end()


if __name__ == "__main__":
    main()
