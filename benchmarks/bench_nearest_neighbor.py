"""Times nearest neighbours against scipy's k-d tree, which gets as many workers as torch threads.

    python -m benchmarks.bench_nearest_neighbor [--threads N] [--repeats N]

76,800 predicted points (600 queries of 128) against 40,000 occupied voxel centres and back, as in
the Chamfer loss of OPUS-V2-T, for predictions near the surface and for uniform ones. Building the
tree is part of both times. Runs of the two alternate, so that a busy machine slows both.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable

import numpy as np
import torch
from scipy.spatial import cKDTree
from torch import Tensor

from models.ops import nearest_neighbor


def seconds(function: Callable[[], object]) -> float:
    start = time.perf_counter()
    function()
    return time.perf_counter() - start


def points() -> dict[str, tuple[Tensor, Tensor]]:
    flat = torch.randperm(200 * 200)[:40000]
    height = torch.randint(0, 3, (40000,))
    voxels = torch.stack([flat // 200, flat % 200, height], 1) * 0.4 - 40 + 0.2
    near = voxels[torch.randint(0, 40000, (600,))].repeat_interleave(128, 0)
    near = near + torch.randn(len(near), 3)
    uniform = torch.rand(76800, 3) * torch.tensor([80, 80, 6.4]) - torch.tensor([40, 40, 1])
    return {
        "near points -> voxels": (near, voxels),
        "voxels -> near points": (voxels, near),
        "uniform points -> voxels": (uniform, voxels),
        "voxels -> uniform points": (voxels, uniform),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--repeats", type=int, default=15)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    print(f"{args.threads} threads, median of {args.repeats} alternating runs")
    print(f"{'case':<28} {'ours ms':>9} {'scipy ms':>9} {'ratio':>6}")
    for name, (query, reference) in points().items():
        q, r = query.numpy(), reference.numpy()
        ours, scipys = [], []
        for _ in range(args.repeats):
            ours.append(seconds(lambda q=query, r=reference: nearest_neighbor(q, r)))
            scipys.append(seconds(lambda q=q, r=r: cKDTree(r).query(q, workers=args.threads)))
        _, squared = nearest_neighbor(query, reference)
        expected = cKDTree(r).query(q)[0]
        np.testing.assert_allclose(squared.sqrt().numpy(), expected, rtol=1e-4, atol=1e-5)
        a, b = 1e3 * statistics.median(ours), 1e3 * statistics.median(scipys)
        print(f"{name:<28} {a:>9.1f} {b:>9.1f} {b / a:>6.2f}")


if __name__ == "__main__":
    main()
