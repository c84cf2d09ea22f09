"""Time the sparse convolutions of V2's head and their kernel maps against the references.

    python benchmarks/bench_sparse_conv.py [--device cpu|cuda] [--threads N] [--repeats N] [--save]

The voxels of 76,800 points on a street; 64 channels, a dilating convolution and then a submanifold
one to the 17 classes. On a GPU the head uses "gathered", and "ours" runs the reference
implementation.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # run as a file, not as a module

from benchmarks import compare
from benchmarks.bench_cpd import LOW, SHAPE
from benchmarks.common import Report, parse_arguments
from benchmarks.decoder_cases import surface_points
from models import ops

EDGE = 0.4
STEP = ops.ConvStep((3, 3, 3), (1, 1, 1), (1, 1, 1))


def main() -> None:
    args = parse_arguments(__doc__, repeats=5)
    report = Report("sparse_conv", args)
    index = ((surface_points(76800, 600).view(-1, 3) - torch.tensor(LOW)) / EDGE).floor().long()
    xyz = torch.minimum(index.clamp(min=0), torch.tensor(SHAPE) - 1).unique(dim=0)
    coords = torch.cat([torch.zeros_like(xyz[:, :1]), xyz], 1).to(args.device)
    dilated = ops.build_kernel_map(coords, SHAPE, 3, padding=1)
    kept = ops.build_kernel_map(dilated.out_coords, SHAPE, 3, subm=True)
    maps, rows = [], []
    key = (coords[:, 1] * SHAPE[1] + coords[:, 2]) * SHAPE[2] + coords[:, 3]
    first, second = ops.voxel_chain(key, 1, SHAPE, [STEP]).sets
    for name, c_out, source, kernel_map, sets in (
        ("dilating 64 -> 64", 64, coords, dilated, (first, second)),
        ("submanifold 64 -> 17", 17, dilated.out_coords, kept, (second, second)),
    ):
        built = (source, SHAPE, 3, 1, 1, kernel_map is kept)
        functions: dict[str, Callable[[], object]] = {
            "ours": lambda a=built: ops.build_kernel_map(*a),
            "reference": lambda a=built: ops.build_kernel_map_reference(*a),
        }
        case = f"kernel map, {kernel_map.num_in} -> {kernel_map.num_out} voxels"
        maps.append(compare.measure(case, functions, args))
        pairs = ops.voxel_neighbors(*sets, STEP)
        x = torch.randn(kernel_map.num_in, 64, device=args.device, requires_grad=True)
        weight = torch.randn(c_out, 3, 3, 3, 64, device=args.device) * 0.1
        leaves: list[Tensor] = [x, weight.requires_grad_()]
        convs: compare.Functions = {
            "ours": lambda x=x, w=weight, m=kernel_map: ops.sparse_conv(x, w, None, m),
            "gathered": lambda x=x, w=weight, p=pairs: ops.gathered_conv(x, w, None, p),
            "reference": lambda x=x, w=weight, m=kernel_map: ops.sparse_conv_reference(
                x, w, None, m
            ),
        }
        work = 2e-9 * int(kernel_map.starts[-1]) * 64 * c_out
        rows += compare.forward_and_backward(name, convs, leaves, args, gigaflop=work)
    compare.add_table(report, maps)
    compare.add_table(report, rows)
    report.end()


if __name__ == "__main__":
    main()
