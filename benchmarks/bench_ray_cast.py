"""Time the ray cast of a small camera against the reference implementation.

    python benchmarks/bench_ray_cast.py [--device cpu|cuda] [--threads N] [--repeats N] [--save]

3,600 rays of one origin through street scenes of the Occ3D grid and of a grid with OpenOccupancy's
voxel size.
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # run as a file, not as a module

from benchmarks import compare
from benchmarks.common import Report, parse_arguments, street
from models import ops


def camera_rays(width: int, height: int) -> Tensor:
    """Return unit directions [height * width, 3] of a camera that looks along x."""
    v, u = torch.meshgrid(
        (torch.arange(height) - height / 2) / (0.8 * width),
        (torch.arange(width) - width / 2) / (0.8 * width),
        indexing="ij",
    )
    rays = torch.stack([torch.ones_like(u), -u, -v], -1).reshape(-1, 3)
    return rays / rays.norm(dim=1, keepdim=True)


def main() -> None:
    args = parse_arguments(__doc__, repeats=9)
    report = Report("ray_cast", args)
    rows = []
    for edge_m, size in ((0.4, (200, 200, 16)), (0.2, (800, 800, 40))):
        pyramid = ops.OccupancyPyramid(street(size, edge_m, free=0)[None].to(args.device), 0)
        origin = torch.tensor([[0.1 * size[0], 0.5 * size[1], 2.4 / edge_m]]) * edge_m
        rays = (origin.to(args.device), camera_rays(80, 45).to(args.device))
        cast = (*rays, (0, 0, 0), (edge_m,) * 3, 0)
        functions = {
            "ours": lambda p=pyramid, a=cast: ops.ray_cast(p, *a),
            "reference": lambda p=pyramid, a=cast: ops.ray_cast_reference(p.grids, *a),
        }
        rows.append(compare.measure("x".join(map(str, size)), functions, args))
    compare.add_table(report, rows)
    report.end()


if __name__ == "__main__":
    main()
