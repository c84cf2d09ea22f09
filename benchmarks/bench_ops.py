"""Times the native CPU operations that have no benchmark of their own beside their plain twins.

    python -m benchmarks.bench_ops [--threads N] [--repeats N] [--only NAME]

Sizes are those of a small OPUS-V2 on Occ3D (one sample, forward and backward). Each line gives the
median wall time of both and their ratio. Take it on a machine that does nothing else.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from benchmarks.common import street
from models import ops

Job = tuple[str, Callable[[], object], Callable[[], object]]
Function = Callable[..., Tensor]


def median_ms(function: Callable[[], object], repeats: int) -> float:
    function()
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        function()
        times.append(time.perf_counter() - start)
    return 1e3 * statistics.median(times)


def forward_and_backward(
    name: str, native: Function, twin: Function, inputs: list[Tensor]
) -> Iterator[Job]:
    """Jobs of an operation of `inputs` alone and of its gradient by all of them."""
    leaves = [x.requires_grad_() for x in inputs]
    yield f"{name} forward", lambda: native(*inputs), lambda: twin(*inputs)
    outs = [function(*inputs) for function in (native, twin)]
    grad = torch.randn_like(outs[0])

    def backward(out: Tensor) -> Callable[[], object]:
        return lambda: torch.autograd.grad(out, leaves, grad, retain_graph=True)

    yield f"{name} backward", backward(outs[0]), backward(outs[1])


def camera_rays(width: int, height: int) -> Tensor:
    v, u = torch.meshgrid(
        (torch.arange(height) - height / 2) / (0.8 * width),
        (torch.arange(width) - width / 2) / (0.8 * width),
        indexing="ij",
    )
    rays = torch.stack([torch.ones_like(u), -u, -v], -1).reshape(-1, 3)
    return rays / rays.norm(dim=1, keepdim=True)


def ray_cast_jobs() -> Iterator[Job]:
    for edge_m, size in ((0.4, (200, 200, 16)), (0.2, (800, 800, 40))):
        pyramid = ops.OccupancyPyramid(street(size, edge_m, free=0)[None], 0)
        origin = torch.tensor([[0.1 * size[0], 0.5 * size[1], 2.4 / edge_m]]) * edge_m
        rays = camera_rays(80, 45)
        args = (origin, rays, (0, 0, 0), (edge_m,) * 3, 0)
        yield (
            f"ray_cast 3,600 rays, {'x'.join(map(str, size))}",
            lambda p=pyramid, a=args: ops.ray_cast(p, *a),
            lambda p=pyramid, a=args: ops.ray_cast_reference(p.grids, *a),
        )


def surface_coords() -> Tensor:
    """About 10,000 voxels of a bumpy surface in the Occ3D grid."""
    xy = torch.randint(50, 150, (30000, 2))
    z = 3 + (xy[:, 0] // 9 + xy[:, 1] // 7) % 5
    return torch.cat([torch.zeros(len(xy), 1, dtype=torch.int64), xy, z[:, None]], 1).unique(dim=0)


def sparse_conv_jobs() -> Iterator[Job]:
    coords, shape = surface_coords(), (200, 200, 16)
    dilated = ops.build_kernel_map(coords, shape, 3, padding=1)
    kept = ops.build_kernel_map(dilated.out_coords, shape, 3, subm=True)
    for name, c_in, c_out, kernel_map in (
        ("sparse_conv 64->64 dilating", 64, 64, dilated),
        ("sparse_conv 64->18 submanifold", 64, 18, kept),
    ):
        source = coords if kernel_map is dilated else dilated.out_coords
        args = (source, shape, 3, 1, 1, kernel_map is kept)
        yield (
            f"kernel map, {kernel_map.num_in} -> {kernel_map.num_out} voxels",
            lambda a=args: ops.build_kernel_map(*a),
            lambda a=args: ops.build_kernel_map_reference(*a),
        )
        inputs = [torch.randn(kernel_map.num_in, c_in), torch.randn(c_out, 3, 3, 3, c_in) * 0.1]
        yield from forward_and_backward(
            name,
            lambda x, w, m=kernel_map: ops.sparse_conv(x, w, None, m),
            lambda x, w, m=kernel_map: ops.sparse_conv_reference(x, w, None, m),
            inputs,
        )


def voxel_max_jobs() -> Iterator[Job]:
    index = torch.randint(0, 10000, (40000,))
    yield from forward_and_backward(
        "voxel_max 40,000 x 64 -> 10,000",
        lambda x: ops.voxel_max(x, index, 10000),
        lambda x: ops.voxel_max_reference(x, index, 10000),
        [torch.randn(40000, 64)],
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--only", default="", help="run the jobs whose name holds this")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    print(f"torch {torch.__version__}, {args.threads} threads, median of {args.repeats}")
    print(f"{'operation':<48} {'native ms':>10} {'twin ms':>10} {'ratio':>7}")
    for jobs in (ray_cast_jobs, sparse_conv_jobs, voxel_max_jobs):
        for name, native, twin in jobs():
            if args.only in name:
                ours = median_ms(native, args.repeats)
                theirs = median_ms(twin, max(1, args.repeats // 3))
                print(f"{name:<48} {ours:>10.2f} {theirs:>10.2f} {theirs / ours:>7.1f}", flush=True)


if __name__ == "__main__":
    main()
