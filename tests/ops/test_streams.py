"""Concurrent operations: on threads of the host, on streams and devices of CUDA."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torch import Tensor

from models import ops

Outputs = tuple[Tensor, ...]
#: Calls an operation (True) or its reference (False) with prepared inputs.
Run = Callable[[bool], Outputs]


def _sampling(device: str) -> Run:
    maps = [torch.rand(1, 2, 16, size, size, device=device) for size in (8, 4)]
    points = torch.rand(1, 40, 2, 4, 3, device=device) + 0.5
    occ2img = torch.eye(4, device=device).expand(1, 2, 4, 4) * 20
    weights = torch.rand(1, 40, 2, 4, 2, device=device)

    def run(native: bool) -> Outputs:
        function = ops.multi_view_sampling if native else ops.multi_view_sampling_reference
        return (function(maps, points, occ2img, weights, (32, 32), 2),)

    return run


def _attention(device: str) -> Run:
    q, k, v = torch.rand(3, 1, 2, 70, 16, device=device)
    tau, centres = torch.rand(1, 2, 70, device=device), 9 * torch.rand(1, 70, 3, device=device)

    def run(native: bool) -> Outputs:
        function = ops.distance_attention if native else ops.distance_attention_reference
        return (function(q, k, v, tau, centres),)

    return run


def _mixing(device: str) -> Run:
    sampled = torch.rand(50, 8, 16, device=device)
    parameters = torch.rand(50, 16 * 16 + 8 * 8, device=device)

    def run(native: bool) -> Outputs:
        function = ops.adaptive_mixing if native else ops.adaptive_mixing_reference
        return (function(sampled, parameters, 8),)

    return run


def _voxels(device: str) -> Run:
    keys, features = torch.randint(500, (3000,), device=device), torch.rand(3000, 24, device=device)

    def run(native: bool) -> Outputs:
        find = ops.unique_voxels if native else ops.unique_voxels_reference
        maximum = ops.voxel_max if native else ops.voxel_max_reference
        unique, voxel = find(keys, 500)
        return unique, voxel, maximum(features, voxel, len(unique))

    return run


def _focal_loss(device: str) -> Run:
    logits, labels = torch.randn(900, 5, device=device), torch.randint(6, (900,), device=device)
    weights, rows = torch.rand(5, device=device), torch.rand(900, device=device)

    def run(native: bool) -> Outputs:
        function = ops.sigmoid_focal_loss if native else ops.sigmoid_focal_loss_reference
        return (function(logits, labels, weights, rows, 2.0, 0.25),)

    return run


def _matching(device: str) -> Run:
    query, reference = torch.rand(2000, 3, device=device), torch.rand(1500, 3, device=device)

    def run(native: bool) -> Outputs:
        nearest = ops.nearest_neighbor if native else ops.nearest_neighbor_reference
        terms = ops.chamfer_terms if native else ops.chamfer_terms_reference
        index, squared = nearest(query, reference)
        return index, squared, terms(query, reference, index, 0.2)

    return run


def _farthest(device: str) -> Run:
    points = torch.rand(2000, 3, device=device)

    def run(native: bool) -> Outputs:
        choose = ops.farthest_point_sampling if native else ops.farthest_point_sampling_reference
        return (choose(points, 60),)

    return run


def _rays(device: str) -> Run:
    labels = torch.where(torch.rand(1, 20, 20, 9) < 0.05, 3, 17).to(device, torch.uint8)
    directions = torch.randn(400, 3, device=device)
    origin = torch.full((1, 3), 2.0, device=device)

    def run(native: bool) -> Outputs:
        cast = ops.ray_cast if native else ops.ray_cast_reference
        hits = cast(labels, origin, directions, (0.0, 0.0, 0.0), (0.4,) * 3, empty_label=17)
        return hits.hit, hits.t_exit

    return run


OPERATIONS: dict[str, Callable[[str], Run]] = {
    "multi_view_sampling": _sampling,
    "distance_attention": _attention,
    "adaptive_mixing": _mixing,
    "unique_voxels and voxel_max": _voxels,
    "sigmoid_focal_loss": _focal_loss,
    "nearest_neighbor and chamfer_terms": _matching,
    "farthest_point_sampling": _farthest,
    "ray_cast": _rays,
}


def _agree(ours: Outputs, theirs: Outputs) -> None:
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", OPERATIONS)
def test_threads_of_the_host(name: str) -> None:
    """Concurrent calls from several Python threads do not affect each other."""
    torch.manual_seed(0)
    run = OPERATIONS[name]("cpu")
    expected = run(True)
    _agree(expected, run(False))
    with ThreadPoolExecutor(4) as pool:
        results = list(pool.map(lambda _: run(True), range(12)))
    for result in results:
        assert all(torch.equal(*pair) for pair in zip(result, expected, strict=True))


@pytest.mark.cuda
@pytest.mark.parametrize("name", OPERATIONS)
def test_streams_and_devices_of_cuda(name: str) -> None:
    """Kernels run on the current stream of their tensors' device, on any current device."""
    torch.manual_seed(0)
    for number in range(torch.cuda.device_count()):
        run = OPERATIONS[name](f"cuda:{number}")
        expected = run(False)
        torch.cuda.synchronize(number)
        for _ in range(3):
            stream = torch.cuda.Stream(number)
            with torch.cuda.stream(stream), torch.cuda.device(0):
                result = run(True)
            stream.synchronize()
            _agree(result, expected)
