"""Time V2's continuous prediction discretization: points to voxel logits.

    python benchmarks/bench_cpd.py [--device cpu|cuda] [--repeats N]

76,800 points near a street (the output size of all V2 variants), 64 channels, 17 classes, the
Occ3D grid. "field" uses spconv, if it is installed: sorted unique voxels, `scatter_reduce` for the
maxima, points and their voxel's maximum concatenated for the second network, and spconv's
convolutions in training mode (in eval mode its CPU code drops the bias). On the CPU, spconv is
correct only with one thread, so all functions run with one there. It has no backward pass on the
CPU, so "both" compares only with the reference implementation. "forward" uses the fixed statistics
of an evaluation, "both" the statistics of the batch.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # run as a file, not as a module

from benchmarks import compare
from benchmarks.common import Report, parse_arguments
from benchmarks.decoder_cases import surface_points
from models import ops

SHAPE, CLASSES = (200, 200, 16), 17
LOW, EDGE = (-40.0, -40.0, -1.0), 0.4


class Weights(nn.Module):
    """Hold the parameters of the two point networks and the two convolutions."""

    def __init__(self) -> None:
        super().__init__()
        self.linears = nn.ModuleList([nn.Linear(38, 32, bias=False), nn.Linear(64, 64, bias=False)])
        self.norms = nn.ModuleList([nn.BatchNorm1d(32, eps=1e-3), nn.BatchNorm1d(64, eps=1e-3)])
        self.convs = nn.ParameterList(
            [torch.randn(64, 3, 3, 3, 64) * 0.03, torch.randn(CLASSES, 3, 3, 3, 64) * 0.03]
        )
        self.biases = nn.ParameterList([torch.zeros(64), torch.zeros(CLASSES)])

    def folded(self, layer: int) -> tuple[Tensor, Tensor | None, Callable[[Tensor], Tensor]]:
        """Return weight, bias and the remaining norm; fixed statistics are folded in."""
        weight, norm = self.linears[layer].weight, self.norms[layer]
        if norm.training:
            return weight, None, norm
        scale = norm.weight * torch.rsqrt(norm.running_var + norm.eps)
        return weight * scale[:, None], norm.bias - norm.running_mean * scale, nn.Identity()


def point_inputs(points: Tensor, feats: Tensor) -> tuple[Tensor, Tensor]:
    """Return the inputs [n, 38] of the first network and the voxel key of every point."""
    low = points.new_tensor(LOW)
    with torch.no_grad():
        size = points.new_tensor(SHAPE)
        index = torch.floor((points - low) / EDGE)
        index = torch.minimum(index.clamp(min=0), size - 1).long()
    centres = (index + 0.5) * EDGE + low
    inputs = torch.cat([points - centres, points - points.mean(1, keepdim=True), feats], -1)
    x, y, z = index.flatten(0, 1).unbind(-1)
    return inputs.flatten(0, 1), (x * SHAPE[1] + y) * SHAPE[2] + z


def coords_of(key: Tensor) -> Tensor:
    z, rest = key % SHAPE[2], key // SHAPE[2]
    return torch.stack([torch.zeros_like(key), rest // SHAPE[1], rest % SHAPE[1], z], 1)


def voxel_features(
    w: Weights, points: Tensor, feats: Tensor, find: Callable[..., tuple[Tensor, Tensor]],
    maximum: Callable[..., Tensor], by_voxels: bool,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Return the features and coordinates of the voxels.

    With `by_voxels`, as in the project's head, the common part of a voxel's points is multiplied
    once per voxel. With fixed statistics, which are folded into the weights, it is added after the
    maximum. The last ReLU follows the maximum.
    """
    x, key = point_inputs(points, feats)
    unique, voxel = find(key, math.prod(SHAPE))
    if by_voxels:
        weight, bias, norm = w.folded(0)
        x = F.relu(norm(F.linear(x, weight, bias)), inplace=True)
        maxima = maximum(x, voxel, len(unique))
        weight, bias, norm = w.folded(1)
        of_point, of_voxel = weight.split(32, dim=1)
        shared = F.linear(maxima, of_voxel, bias)
        if not w.training:
            x = maximum(F.linear(x, of_point), voxel, len(unique)) + shared
            return F.relu(x), coords_of(unique)
        x = norm(shared.index_select(0, voxel).addmm_(x, of_point.t()))
        return F.relu(maximum(x, voxel, len(unique)), inplace=True), coords_of(unique)
    x = F.relu(w.norms[0](w.linears[0](x)), inplace=True)
    maxima = maximum(x, voxel, len(unique))
    x = w.norms[1](w.linears[1](torch.cat([x, maxima[voxel]], 1)))
    return maximum(F.relu(x, inplace=True), voxel, len(unique)), coords_of(unique)


def with_ops(w: Weights, points: Tensor, feats: Tensor, suffix: str) -> Tensor:
    """Compute with the operations, or with suffix "_reference" with their references."""
    names = ("unique_voxels", "voxel_max", "build_kernel_map", "sparse_conv")
    op = {name: getattr(ops, name + suffix) for name in names}
    x, coords = voxel_features(w, points, feats, op["unique_voxels"], op["voxel_max"], True)
    dilated = op["build_kernel_map"](coords, SHAPE, 3, padding=1)
    x = F.relu(op["sparse_conv"](x, w.convs[0], w.biases[0], dilated), inplace=True)
    kept = op["build_kernel_map"](dilated.out_coords, SHAPE, 3, subm=True)
    return op["sparse_conv"](x, w.convs[1], w.biases[1], kept)


def on_device(w: Weights, points: Tensor, feats: Tensor) -> Tensor:
    """Compute as on a GPU: voxels and dilated voxels as bitmaps, gathered products."""
    x, coords = voxel_features(w, points, feats, ops.unique_voxels, ops.voxel_max, True)
    _, x_index, y, z = coords.unbind(1)
    dilate = ops.ConvStep((3, 3, 3), (1, 1, 1), (1, 1, 1))
    chain = ops.voxel_chain((x_index * SHAPE[1] + y) * SHAPE[2] + z, 1, SHAPE, [dilate])
    pairs = ops.voxel_neighbors(*chain.sets, dilate)
    x = F.relu(ops.gathered_conv(x, w.convs[0], w.biases[0], pairs))
    kept = ops.voxel_neighbors(chain.sets[1], chain.sets[1], dilate)
    return ops.gathered_conv(x, w.convs[1], w.biases[1], kept)


def scatter_maximum(x: Tensor, voxel: Tensor, count: int) -> Tensor:
    target = voxel[:, None].expand_as(x)
    return x.new_zeros(count, x.shape[1]).scatter_reduce(0, target, x, "amax", include_self=False)


class Field:
    """Compute with spconv."""

    def __init__(self, w: Weights, device: torch.device) -> None:
        import spconv.pytorch as spconv

        self.spconv: Any = spconv
        self.w = w
        self.convs = [
            spconv.SparseConv3d(64, 64, 3, padding=1).to(device),
            spconv.SubMConv3d(64, CLASSES, 3, padding=1).to(device),
        ]
        for conv, weight, bias in zip(self.convs, w.convs, w.biases, strict=True):
            conv.weight.data.copy_(weight)
            conv.bias.data.copy_(bias)

    def __call__(self, points: Tensor, feats: Tensor) -> Tensor:
        x, coords = voxel_features(
            self.w, points, feats, ops.unique_voxels_reference, scatter_maximum, False
        )
        tensor = self.spconv.SparseConvTensor(x, coords.int().contiguous(), list(SHAPE), 1)
        tensor = self.convs[0](tensor)
        tensor = tensor.replace_feature(F.relu(tensor.features, inplace=True))
        out = self.convs[1](tensor)
        _, x_index, y, z = out.indices.long().unbind(1)
        order = ((x_index * SHAPE[1] + y) * SHAPE[2] + z).argsort()
        return out.features[order]


def main() -> None:
    args = parse_arguments(__doc__, repeats=7)
    if args.device == "cpu":
        args.threads = 1
        torch.set_num_threads(1)
    report = Report("cpd", args)
    w = Weights().to(args.device)
    points = surface_points(76800, 600)[0].to(args.device)
    feats = torch.randn(600, 128, 32, device=args.device)
    leaves = [x.requires_grad_() for x in (points, feats, *w.parameters())]
    with torch.no_grad():
        coords = voxel_features(w, points, feats, ops.unique_voxels, ops.voxel_max, True)[1]
        dilated = ops.build_kernel_map(coords, SHAPE, 3, padding=1)
        kept = ops.build_kernel_map(dilated.out_coords, SHAPE, 3, subm=True)
    report.line(f"76800 points, {len(coords)} voxels, {dilated.num_out} after dilation.\n")
    gigaflop = 2e-9 * (int(dilated.starts[-1]) * 64 * 64 + int(kept.starts[-1]) * 64 * CLASSES)
    gigaflop += 2e-9 * 76800 * (38 * 32 + 64 * 64)
    functions: compare.Functions = {
        "ours": lambda: (
            with_ops(w, points, feats, "") if args.device == "cpu" else on_device(w, points, feats)
        ),
        "reference": lambda: with_ops(w, points, feats, "_reference"),
    }
    with_field = dict(functions)
    if find_spec("spconv") is not None:
        field = Field(w, args.device)
        with_field["field"] = lambda: field(points, feats)
    w.eval()
    forward = compare.forward("V2-T CPD", with_field, args, gigaflop, tolerance=1e-3)
    compare.add_table(report, [forward])
    if "field" in with_field:
        report.aim("cpd:forward_over_spconv", forward.ratio("field"), 3.0)
    w.train()
    grad = torch.randn(dilated.num_out, CLASSES, device=args.device)
    compare.add_table(report, [compare.both("V2-T CPD", functions, leaves, grad, args)])
    report.end()


if __name__ == "__main__":
    main()
