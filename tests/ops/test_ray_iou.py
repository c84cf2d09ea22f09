from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from models.ops import (
    LabelRays,
    label_rays,
    label_rays_reference,
    ray_iou_counts,
    ray_iou_counts_reference,
)

MIN, EDGE, FREE, CLASSES = (-4.0, -4.0, -0.4), 0.4, 3, 4
THRESHOLDS = (0.5, 1.0, 2.0)


def scene(seed: int, samples: int, density: float, device: str) -> tuple[Tensor, ...]:
    """Return predictions and ground truths [B, 20, 21, 8], origins, samples, directions."""
    generator = torch.Generator().manual_seed(seed)
    shape = (2, samples, 20, 21, 8)
    labels = torch.randint(0, FREE, shape, generator=generator)
    grids = torch.where(torch.rand(shape, generator=generator) < density, labels, FREE)
    grids = grids.to(torch.uint8)
    count = int(torch.randint(0, 6, (), generator=generator))
    origins = torch.rand(count, 3, generator=generator, dtype=torch.float64) * 6 - 3
    sample_of_origin = torch.randint(-1, samples + 1, (count,), generator=generator)
    directions = torch.randn(40, 3, generator=generator)
    directions = directions / directions.norm(dim=1, keepdim=True)
    return tuple(x.to(device) for x in (*grids, origins, sample_of_origin, directions))


@given(
    seed=st.integers(0, 2**31), samples=st.integers(1, 3), density=st.sampled_from([0, 0.02, 0.3])
)
def test_native_equals_reference(device: str, seed: int, samples: int, density: float) -> None:
    """Bitwise equal with cast and cached rays; origins without a sample count nothing."""
    pred, gt, *rays = scene(seed, samples, density, device)
    settings = (*rays, MIN, EDGE, FREE)
    seen, expected = label_rays(gt, *settings), label_rays_reference(gt, *settings)
    for ours, theirs in zip(seen, expected, strict=True):
        assert ours.dtype == theirs.dtype and torch.equal(ours, theirs)
    for truth in (gt, seen):
        counts, cast = ray_iou_counts(pred, truth, *settings, CLASSES, THRESHOLDS)
        reference, _ = ray_iou_counts_reference(pred, truth, *settings, CLASSES, THRESHOLDS)
        assert torch.equal(counts, reference)
        assert torch.equal(cast.label, seen.label) and torch.equal(cast.depth_m, seen.depth_m)


@pytest.mark.parametrize("height", [1, 15, 16, 30, 31, 32, 63, 70])
def test_any_height_and_origins_outside(device: str, height: int) -> None:
    """Heights near the limits of rows of 16 voxels and words of 4."""
    generator = torch.Generator().manual_seed(height)
    shape = (2, 1, 13, 9, height)
    occupied = torch.rand(shape, generator=generator) < 0.02 + 0.2 / height
    labels = torch.randint(0, FREE, shape, generator=generator)
    pred, gt = torch.where(occupied, labels, FREE).to(device, torch.uint8)
    reach = torch.tensor([13.0, 9.0, height], dtype=torch.float64)
    origins = (torch.rand(12, 3, generator=generator, dtype=torch.float64) * 1.6 - 0.3) * reach
    along = torch.cat([torch.randn(200, 3, generator=generator), torch.eye(3), -torch.eye(3)])
    rays = (
        origins.to(device), torch.zeros(12, dtype=torch.int64, device=device),
        (along / along.norm(dim=1, keepdim=True)).to(device), (0.0, 0.0, 0.0), 1.0, FREE,
    )  # fmt: skip
    counts, seen = ray_iou_counts(pred, gt, *rays, CLASSES, THRESHOLDS)
    expected = ray_iou_counts_reference(pred, gt, *rays, CLASSES, THRESHOLDS)
    assert torch.equal(counts, expected[0]) and counts.sum() > 0
    assert torch.equal(seen.label, expected[1].label)
    assert torch.equal(seen.depth_m, expected[1].depth_m)


@pytest.mark.parametrize("density", [0.0, 0.002, 0.02])
def test_crossings_at_one_time(device: str, density: float) -> None:
    """Rays through edges and corners of voxels, which cross several boundaries at once."""
    generator = torch.Generator().manual_seed(1)
    shape = (2, 1, 40, 37, 16)
    occupied = torch.rand(shape, generator=generator) < density
    labels = torch.randint(0, FREE, shape, generator=generator)
    pred, gt = torch.where(occupied, labels, FREE).to(device, torch.uint8)
    steps = torch.tensor([-3.0, -2.0, -1.0, -0.5, 0.0, 0.5, 1.0, 2.0, 3.0])
    along = torch.cartesian_prod(steps, steps, steps)
    along = along[along.norm(dim=1) > 0]
    lattice = torch.tensor([0.0, 0.5, 7.0, 15.0, 20.5, 36.0, 40.0], dtype=torch.float64)
    origins = torch.cartesian_prod(lattice[::2], lattice[1:5:2], lattice[1:4:2])
    rays = (
        origins.to(device), torch.zeros(len(origins), dtype=torch.int64, device=device),
        along.to(device), (0.0, 0.0, 0.0), 1.0, FREE,
    )  # fmt: skip
    counts, seen = ray_iou_counts(pred, gt, *rays, CLASSES, THRESHOLDS)
    expected = ray_iou_counts_reference(pred, gt, *rays, CLASSES, THRESHOLDS)
    assert torch.equal(counts, expected[0])
    assert torch.equal(seen.label, expected[1].label)
    assert torch.equal(seen.depth_m, expected[1].depth_m)


def test_long_ways_through_empty_space(device: str) -> None:
    """Empty squares larger than the largest stored one; many rays, so that lanes are refilled."""
    generator = torch.Generator().manual_seed(2)
    grids = torch.full((2, 2, 150, 90, 20), FREE, dtype=torch.uint8)
    for row in torch.rand(60, 4, generator=generator).tolist():
        grid, x, y, z = (int(part * size) for part, size in zip(row, (4, 147, 87, 20), strict=True))
        grids[grid // 2, grid % 2, x : x + 3, y : y + 3, z:] = grid % FREE
    grids[..., 0] = 1
    origins = torch.rand(4, 3, generator=generator, dtype=torch.float64)
    origins = origins * torch.tensor([60.0, 36.0, 6.0]) + torch.tensor([0.0, 0.0, 1.0])
    along = torch.randn(1100, 3, generator=generator) * torch.tensor([1.0, 1.0, 0.1])
    rays = (
        origins.to(device), torch.tensor([1, 0, 0, 1], device=device),
        torch.nn.functional.normalize(along).to(device), (0.0, 0.0, 0.0), 0.4, FREE,
    )  # fmt: skip
    pred, gt = grids.to(device)
    for truth in (gt, label_rays(gt, *rays)):
        counts, seen = ray_iou_counts(pred, truth, *rays, CLASSES, THRESHOLDS)
        expected = ray_iou_counts_reference(pred, truth, *rays, CLASSES, THRESHOLDS)
        assert torch.equal(counts, expected[0]) and counts.sum() > 0
        assert torch.equal(seen.label, expected[1].label)
        assert torch.equal(seen.depth_m, expected[1].depth_m)


def test_grids_that_are_too_wide_for_maps(device: str) -> None:
    """Positions in the maps of empty squares would need more than 32 bits."""
    grids = torch.full((1, 6000, 6000, 1), FREE, dtype=torch.uint8, device=device)
    grids[0, 5800, 3000] = 2
    origins = torch.tensor([[100.5, 3000.5, 0.5]], dtype=torch.float64, device=device)
    along = torch.tensor([[1.0, 0.0, 0.0], [0.0, 1.0, 0.0]], device=device)
    sample = torch.zeros(1, dtype=torch.int64, device=device)
    seen = label_rays(grids, origins, sample, along, (0.0, 0.0, 0.0), 1.0, FREE)
    assert seen.label.tolist() == [[2, FREE]] and seen.depth_m.tolist() == [[5700.5, 2999.5]]


def test_more_origins_than_a_grid_of_a_gpu_has_rows(device: str) -> None:
    """Blocks loop; the counts of an origin belong to its sample."""
    pred, gt, *_ = scene(7, 2, 0.3, device)
    number = 66000
    origins = torch.rand(number, 3, dtype=torch.float64) * 6 - 3
    sample = torch.randint(-1, 3, (number,))
    directions = torch.randn(3, 3).to(device)
    settings = (MIN, EDGE, FREE, CLASSES, THRESHOLDS)
    parts = [
        ray_iou_counts(pred, gt, own.to(device), of.to(device), directions, *settings)
        for own, of in zip(origins.split(40000), sample.split(40000), strict=True)
    ]
    rays = (origins.to(device), sample.to(device), directions)
    counts, seen = ray_iou_counts(pred, gt, *rays, *settings)
    assert torch.equal(counts, parts[0][0] + parts[1][0]) and counts.sum() > 0
    assert torch.equal(seen.label, torch.cat([part[1].label for part in parts]))
    assert torch.equal(seen.depth_m, torch.cat([part[1].depth_m for part in parts]))
    assert torch.equal(ray_iou_counts(pred, seen, *rays, *settings)[0], counts)


@pytest.mark.parametrize("classes", [1, 255, 256])
def test_any_number_of_classes_and_thresholds(device: str, classes: int) -> None:
    generator = torch.Generator().manual_seed(classes)
    shape = (2, 1, 20, 21, 8)
    labels = torch.randint(0, 256, shape, generator=generator)
    grids = torch.where(torch.rand(shape, generator=generator) < 0.05, labels, 255)
    pred, gt = grids.to(device, torch.uint8)
    rays = (
        torch.zeros(1, 3, dtype=torch.float64, device=device),
        torch.zeros(1, dtype=torch.int64, device=device),
        torch.randn(300, 3, generator=generator).to(device),
    )
    thresholds = tuple(0.5 * (h + 1) for h in range(8))
    for truth in (gt, label_rays(gt, *rays, MIN, EDGE, 255)):
        settings = (*rays, MIN, EDGE, 255, classes, thresholds)
        counts, _ = ray_iou_counts(pred, truth, *settings)
        assert torch.equal(counts, ray_iou_counts_reference(pred, truth, *settings)[0])


def test_without_avx2(run_in_new_process: Callable[..., None]) -> None:
    """The portable code gives equal counts; the choice is made once per process."""
    run_in_new_process(
        """
import torch
from models.ops import ray_iou_counts, ray_iou_counts_reference
torch.manual_seed(0)
grids = torch.where(torch.rand(2, 2, 40, 33, 17) < 0.02, 1, 3).to(torch.uint8)
origins = torch.rand(7, 3, dtype=torch.float64) * 16 - 2
directions = torch.nn.functional.normalize(torch.randn(100, 3))
rays = (origins, torch.arange(7) % 2, directions, (0.0, 0.0, 0.0), 0.4, 3, 4, (1.0, 2.0))
for truth in (grids[1], ray_iou_counts(grids[1], grids[1], *rays)[1]):
    counts, seen = ray_iou_counts(grids[0], truth, *rays)
    reference, expected = ray_iou_counts_reference(grids[0], truth, *rays)
    assert torch.equal(counts, reference) and counts.sum() > 0
    assert all(torch.equal(a, b) for a, b in zip(seen, expected))
""",
        OPUS_DISABLE_AVX2="1",
    )


def one_ray(device: str) -> tuple[Tensor, ...]:
    """Make free grids for the test to fill, and one origin at x = 0 looking along +x."""
    grids = torch.full((2, 1, 20, 20, 8), FREE, dtype=torch.uint8, device=device)
    origins = torch.tensor([[0.0, 0.1, 1.0]], dtype=torch.float64, device=device)
    along = torch.tensor([[1.0, 0.0, 0.0]], device=device)
    return (*grids, origins, torch.zeros(1, dtype=torch.int64, device=device), along)


def test_counts_by_hand(device: str) -> None:
    pred, gt, *rays = one_ray(device)
    gt[0, 12, 10, 3] = 1  # x from 0.8 to 1.2 m
    settings = (*rays, MIN, EDGE, FREE, CLASSES, THRESHOLDS)

    def counts() -> list[list[int]]:
        return ray_iou_counts(pred, gt, *settings)[0][0].tolist()

    nothing = [[0, 0, 0, 0]] * 3
    assert counts() == [*nothing, [0, 1, 0, 0], [0, 0, 0, 1]]  # predicted free
    pred[0, 14, 10, 3] = 1  # 0.8 m too far: within 1 and 2 m
    assert counts() == [[0] * 4, [0, 1, 0, 0], [0, 1, 0, 0], [0, 1, 0, 0], [0, 1, 0, 0]]
    pred[0, 12, 10, 3] = 2  # the right place, another class
    assert counts() == [*nothing, [0, 1, 0, 0], [0, 0, 1, 0]]
    gt[:] = FREE  # nothing to score
    assert counts() == [[0] * 4] * 5


def test_depth_is_to_where_the_ray_leaves(device: str) -> None:
    _, gt, *rays = one_ray(device)
    gt[0, 12, 10, 3] = 1
    seen = label_rays(gt, *rays, MIN, EDGE, FREE)
    assert seen.label.item() == 1 and seen.depth_m.item() == pytest.approx(1.2, abs=1e-6)
    gt[:] = FREE
    seen = label_rays(gt, *rays, MIN, EDGE, FREE)
    assert seen.label.item() == FREE and seen.depth_m.item() == pytest.approx(4.0, abs=1e-6)


def test_rays_that_are_not_finite_see_nothing(device: str) -> None:
    _, gt, origins, sample, along = one_ray(device)
    gt[:] = 1
    for bad in (math.nan, math.inf):
        broken = torch.full_like(origins, bad)
        seen = label_rays(gt, broken, sample, along, MIN, EDGE, FREE)
        assert seen.label.item() == FREE and seen.depth_m.item() == 0
        seen = label_rays(gt, origins, sample, torch.full_like(along, bad), MIN, EDGE, FREE)
        assert seen.label.item() == FREE and seen.depth_m.item() == 0


def test_labels_beyond_the_classes_are_counted_nowhere(device: str) -> None:
    pred, gt, *rays = one_ray(device)
    pred[0, 12, 10, 3] = gt[0, 12, 10, 3] = 200
    settings = (*rays, MIN, EDGE, FREE, CLASSES, THRESHOLDS)
    for function in (ray_iou_counts, ray_iou_counts_reference):
        assert function(pred, gt, *settings)[0].sum() == 0


def test_strided_arguments_and_threads(at_threads: Callable[..., Any]) -> None:
    pred, gt, origins, _, directions = scene(5, 3, 0.05, "cpu")
    origins = torch.rand(7, 3, dtype=torch.float64) * 6 - 3
    sample = torch.arange(7) % 3
    settings = (MIN, EDGE, FREE, CLASSES, THRESHOLDS)
    plain, _ = at_threads(1, ray_iou_counts, pred, gt, origins, sample, directions, *settings)
    strided = (
        pred.transpose(1, 3).contiguous().transpose(1, 3),
        gt.permute(3, 1, 2, 0).contiguous().permute(3, 1, 2, 0),
        torch.cat([origins, origins], 1)[:, :3],
        sample.repeat_interleave(2)[::2],
        directions.t().contiguous().t(),
    )
    assert not any(x.is_contiguous() for x in strided)
    again, _ = at_threads(2, ray_iou_counts, *strided, *settings)
    assert torch.equal(again, plain) and plain.sum() > 0


def test_nothing_to_cast(device: str) -> None:
    pred, gt, origins, sample, along = one_ray(device)
    settings = (MIN, EDGE, FREE, CLASSES, THRESHOLDS)
    for args in (
        (pred, gt, origins[:0], sample[:0], along), (pred, gt, origins, sample, along[:0]),
        (pred[:0], gt[:0], origins, sample, along),
    ):  # fmt: skip
        counts, seen = ray_iou_counts(*args, *settings)
        assert counts.shape == (len(args[0]), 5, CLASSES) and counts.sum() == 0
        assert seen.label.shape == (len(args[2]), len(args[4]))


def test_bad_arguments(device: str) -> None:
    pred, gt, origins, sample, along = one_ray(device)
    tail = (MIN, EDGE, FREE, CLASSES, THRESHOLDS)

    def call(*args: Any, tail: tuple[Any, ...] = tail) -> None:
        ray_iou_counts(*args, *tail)

    with pytest.raises(
        ValueError, match=r"one shape, got \[1, 20, 20, 8\] and Byte \[1, 20, 20, 7\]"
    ):
        call(pred, gt[..., :7], origins, sample, along)
    with pytest.raises(ValueError, match=r"grids must be uint8 \[G, X, Y, Z\], got Long"):
        call(pred.long(), gt, origins, sample, along)
    with pytest.raises(ValueError, match=r"origins must be float64 \[N, 3\], got Float \[1, 3\]"):
        call(pred, gt, origins.float(), sample, along)
    with pytest.raises(ValueError, match=r"sample_of_origin must be int64 \[1\], got Long \[2\]"):
        call(pred, gt, origins, sample.repeat(2), along)
    with pytest.raises(
        ValueError, match=r"directions must be float32 \[D, 3\], got Double \[1, 3\]"
    ):
        call(pred, gt, origins, sample, along.double())
    with pytest.raises(ValueError, match=r"gt_label must be uint8 \[1, 1\], got Byte \[1, 2\]"):
        rays = LabelRays(pred.new_zeros(1, 2), along.new_zeros(1, 2))
        call(pred, rays, origins, sample, along)
    with pytest.raises(ValueError, match=r"num_classes must be in 1..256, got 0"):
        call(pred, gt, origins, sample, along, tail=(MIN, EDGE, FREE, 0, THRESHOLDS))
    with pytest.raises(ValueError, match="1 to 8 thresholds, got 0"):
        call(pred, gt, origins, sample, along, tail=(MIN, EDGE, FREE, CLASSES, ()))
    with pytest.raises(ValueError, match="voxel_size be positive"):
        call(pred, gt, origins, sample, along, tail=(MIN, 0.0, FREE, CLASSES, THRESHOLDS))


def test_opcheck(device: str) -> None:
    pred, gt, origins, sample, along = one_ray(device)
    rays = (origins, sample, along, list(MIN), EDGE, FREE)
    torch.library.opcheck(torch.ops.opus.label_rays.default, (gt, *rays))
    tail = (CLASSES, list(THRESHOLDS))
    counts = torch.ops.opus.ray_iou_counts.default
    torch.library.opcheck(counts, (pred, gt, *rays, *tail, None, None))
    torch.library.opcheck(counts, (pred, None, *rays, *tail, *label_rays(gt, *rays)))


@pytest.mark.parametrize("function", [label_rays, label_rays_reference])
def test_starts_and_misses_as_in_the_published_tool(device: str, function: Any) -> None:
    grids = torch.full((1, 4, 4, 4), FREE, dtype=torch.uint8, device=device)
    grids[0, 0, 0, 0], grids[0, 0, 2, 2], grids[0, 3, 0, 1], grids[0, 0, 3, 0] = 0, 1, 2, 0
    along = torch.tensor([[1.0, 0.0, 0.0], [-1.0, 0.0, 0.0], [0.0, 1.0, 0.0]], device=device)
    sample = torch.zeros(1, dtype=torch.int64, device=device)

    def see(x: float, y: float, z: float) -> tuple[list[int], list[float]]:
        origin = torch.tensor([[x, y, z]], dtype=torch.float64, device=device)
        seen = function(grids, origin, sample, along, (0.0, 0.0, 0.0), 1.0, FREE)
        return seen.label[0].tolist(), seen.depth_m[0].tolist()

    # Half a voxel below: in voxel 0, which it leaves at x = 1, or has left at x = 0.
    assert see(-0.5, 2.5, 2.5) == ([1, 1, 1], [1.5, -0.5, 0.5])
    # Further below: it comes in, or misses and has the class of voxel (0, 0, 0).
    assert see(-1.5, 2.5, 2.5) == ([1, 0, 0], [2.5, -1.0, -1.0])
    assert see(-1.5, -0.5, 1.5) == ([2, 0, 0], [5.5, -1.0, -1.0])
    assert see(1e6, 0.5, 1.5) == ([0, 0, 0], [-1.0, -1.0, -1.0])


@pytest.mark.parametrize(
    ("direction", "passed", "others"),
    [
        ((1, 1, 0), [(1, 2, 1)], [(2, 1, 1)]),
        ((1, 0, 1), [(1, 1, 2)], [(2, 1, 1)]),
        ((0, 1, 1), [(1, 1, 2)], [(1, 2, 1)]),
        ((1, 1, 1), [(1, 1, 2), (1, 2, 2)], [(1, 2, 1), (2, 1, 1), (2, 2, 1), (2, 1, 2)]),
    ],
)
@pytest.mark.parametrize("function", [label_rays, label_rays_reference])
def test_order_of_crossings_at_one_time(
    device: str, function: Any, direction: tuple[int, ...], passed: Any, others: Any
) -> None:
    """A ray through an edge or a corner steps z first, then y, then x."""
    origin = torch.full((1, 3), 1.5, dtype=torch.float64, device=device)
    sample = torch.zeros(1, dtype=torch.int64, device=device)
    along = torch.tensor([direction], dtype=torch.float32, device=device)
    for voxel in passed + others:
        grids = torch.full((1, 4, 4, 4), FREE, dtype=torch.uint8, device=device)
        grids[0][voxel] = 1
        seen = function(grids, origin, sample, along, (0.0, 0.0, 0.0), 1.0, FREE)
        assert seen.label.item() == (1 if voxel in passed else FREE), voxel
