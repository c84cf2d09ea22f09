"""Time nearest neighbours of a Chamfer loss: 76,800 points and occupied voxels, both directions.

    python benchmarks/bench_nearest_neighbor.py [--device cpu|cuda] [--repeats N] [--save]

Every V2 model predicts 76,800 points (V2-T: 600 queries of 128). Their distance from the voxels has
a standard deviation of 1 m. Compared with scipy's k-d tree on a CPU, with as many workers as torch
threads, and with mmcv's knn and the tiled all-pairs kernel on a GPU. All times include building the
data structures.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # run as a file, not as a module

from benchmarks.common import Report, parse_arguments, street, timings
from models.ops import PointTree, nearest_neighbor
from models.ops._extension import native

SCENES = (
    ("Occ3D, 20 k", (200, 200, 16), 0.4, 20_000),
    ("Occ3D, 40 k", (200, 200, 16), 0.4, 40_000),
    ("Occ3D, 80 k", (200, 200, 16), 0.4, 80_000),
    ("OpenOccupancy, 200 k", (512, 512, 40), 0.2, 200_000),
)


def points(size: tuple[int, int, int], edge_m: float, number: int) -> tuple[Tensor, Tensor]:
    """Return the predictions [76800, 3] and voxel centres [number, 3], metres."""
    occupied = (street(size, edge_m) != 17).nonzero()
    rows = torch.randperm(len(occupied))[:number].sort().values
    assert len(rows) == number, f"the scene has {len(rows)} voxels, {number} are needed"
    voxels = (occupied[rows] + 0.5) * edge_m
    near = voxels[torch.randint(0, number, (600,))].repeat_interleave(128, 0)
    return near + torch.randn(len(near), 3), voxels


def peers(device: str, threads: int) -> dict[str, Callable[[Tensor, Tensor], object]]:
    """Return the installed functions to compare with, all exact."""
    if device == "cuda":
        found = {"tiled all pairs": native("nearest_by_brute_force")}
        try:
            from mmcv.ops import knn
        except ImportError:
            return found
        return found | {"mmcv knn": lambda q, r: knn(1, r[None], q[None])}
    try:
        from scipy.spatial import cKDTree
    except ImportError:
        return {}
    return {"scipy": lambda q, r: cKDTree(r.numpy()).query(q.numpy(), workers=threads)}


def main() -> None:
    args = parse_arguments(__doc__, repeats=9)
    report = Report("nearest_neighbor", args)
    others = peers(args.device, args.threads)
    own_columns = ("ours", "prepared", "both prepared")
    report.table(["case", *(f"{name} ms" for name in (*own_columns, *others)), "MiB"])
    worst = {name: float("inf") for name in others}
    for name, size, edge_m, number in SCENES:
        pred, voxels = (x.to(args.device) for x in points(size, edge_m, number))
        for direction, q, r in (
            ("points to voxels", pred, voxels),
            ("voxels to points", voxels, pred),
        ):
            tree, own_tree = PointTree(r), PointTree(q)
            calls = {
                "ours": lambda q=q, r=r: nearest_neighbor(q, r),
                "prepared": lambda q=q, t=tree: t.nearest(q),
                "both prepared": lambda q=own_tree, t=tree: t.nearest(q),
                **{name: lambda f=f, q=q, r=r: f(q, r) for name, f in others.items()},
            }
            measured = timings(list(calls.values()), args.repeats, args.device)
            case = f"{name}, {direction}"
            report.note_runs(case, dict(zip(calls, measured, strict=True)))
            all_ms = [timing.ms for timing in measured]
            report.row(case, *(f"{ms:.1f}" for ms in all_ms), f"{measured[0].mib:.0f}")
            own, times = all_ms[0], all_ms[len(own_columns) :]
            for peer, time in zip(others, times, strict=True):
                worst[peer] = min(worst[peer], time / own)
    goals = {"scipy": 1.0, "mmcv knn": 10.0, "tiled all pairs": 1.0}
    for peer, ratio in worst.items():
        report.aim(
            f"nearest_neighbor:least_speed_over_{peer.replace(' ', '_')}", ratio, goals[peer]
        )
    report.end()


if __name__ == "__main__":
    main()
