"""Time the voxels of points and the maxima of each voxel against the references.

    python benchmarks/bench_voxel_max.py [--device cpu|cuda] [--threads N] [--repeats N] [--save]

76,800 points on a street, 64 channels, the Occ3D grid.
"""

from __future__ import annotations

import math
import sys
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # run as a file, not as a module

from benchmarks import compare
from benchmarks.bench_cpd import SHAPE, point_inputs
from benchmarks.common import Report, parse_arguments
from benchmarks.decoder_cases import surface_points
from models import ops


def main() -> None:
    args = parse_arguments(__doc__, repeats=9)
    report = Report("voxel_max", args)
    points = surface_points(76800, 600)[0].to(args.device)
    key = point_inputs(points, points.new_zeros(600, 128, 32))[1]
    voxels = math.prod(SHAPE)
    unique, voxel = ops.unique_voxels(key, voxels)
    functions = {
        "ours": lambda: ops.unique_voxels(key, voxels),
        "reference": lambda: ops.unique_voxels_reference(key, voxels),
    }
    rows = [compare.measure(f"unique voxels, {len(unique)}", functions, args)]
    x = torch.randn(len(key), 64, device=args.device, requires_grad=True)
    maxima: compare.Functions = {
        "ours": lambda: ops.voxel_max(x, voxel, len(unique)),
        "reference": lambda: ops.voxel_max_reference(x, voxel, len(unique)),
    }
    moved = 4e-9 * 64 * (len(key) + len(unique))
    rows += compare.forward_and_backward("maxima", maxima, [x], args, gigabytes=moved)
    compare.add_table(report, rows)
    report.end()


if __name__ == "__main__":
    main()
