from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from models.ops import OccupancyPyramid, RayHits, ray_cast, ray_cast_reference
from models.ops._extension import native
from models.ops.ray_cast import _ray_cast

GOLDEN = Path(__file__).resolve().parents[1] / "golden" / "occ_metrics.npz"
UNIT = ((0.0, 0.0, 0.0), (1.0, 1.0, 1.0), 0)


def assert_same(a: RayHits, b: RayHits) -> None:
    for name, x, y in zip(RayHits._fields, a, b, strict=True):
        assert x.dtype == y.dtype and torch.equal(x, y), name


def random_grids(shape: tuple[int, ...], density: float, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return (torch.rand(shape, generator=generator) < density).to(torch.uint8)


@pytest.mark.parametrize("which", ["gt", "pred"])
def test_golden_rayiou_rays(device: str, which: str) -> None:
    """Class and depth of all rays of the published metric, with its rounding."""
    golden = np.load(GOLDEN)
    grids = torch.from_numpy(golden[f"{which}/0"])[None].to(device)
    pyramid = OccupancyPyramid(grids, 17)
    rays = torch.from_numpy(golden["rays"]).double().to(device)
    origins = torch.from_numpy(golden["origins/0"]).to(device)
    expected = golden[f"ray_{which}/0"].reshape(len(origins), len(rays), 2)
    minimum = torch.tensor([-40.0, -40.0, -1.0], dtype=torch.float64).to(device)
    voxel_size = torch.tensor(0.4).double()  # rounded to float32, as the metric does
    for origin, (classes, depth) in zip(origins, expected.transpose(0, 2, 1), strict=True):
        start = ((origin - minimum) / voxel_size).float()
        direction = ((origin + rays - minimum) / voxel_size).float() - start
        direction = (direction / direction.norm(dim=1, keepdim=True)).double()
        hits = ray_cast(
            pyramid, start.double()[None], direction, (0, 0, 0), (1, 1, 1), empty_label=17
        )
        x, y, z = hits.voxel[0, 0].long().unbind(1)
        np.testing.assert_array_equal(grids[0, x, y, z].cpu().numpy(), classes)
        np.testing.assert_array_equal(hits.hit[0, 0].cpu().numpy(), classes != 17)
        np.testing.assert_allclose(hits.t_exit[0, 0].cpu().numpy() * 0.4, depth, atol=1e-4)


@pytest.mark.parametrize(
    ("direction", "face", "origin"),
    [
        ((1, 0, 0), 0, (0.25, 5.5, 5.5)),
        ((-1, 0, 0), 1, (10.75, 5.5, 5.5)),
        ((0, 1, 0), 2, (5.5, 0.25, 5.5)),
        ((0, -1, 0), 3, (5.5, 10.75, 5.5)),
        ((0, 0, 1), 4, (5.5, 5.5, 0.25)),
        ((0, 0, -1), 5, (5.5, 5.5, 10.75)),
    ],
)
@pytest.mark.parametrize("cast", [ray_cast, ray_cast_reference])
def test_axis_parallel_rays(
    cast: Callable[..., RayHits], direction: tuple[int, ...], face: int,
    origin: tuple[float, ...], device: str,
) -> None:  # fmt: skip
    grids = torch.zeros(1, 11, 11, 11, dtype=torch.uint8, device=device)
    grids[0, 5, 5, 5] = 3
    origins = torch.tensor([origin], device=device) * 0.5 - 2
    directions = 2 * torch.tensor([direction], device=device).float()
    hits = cast(grids, origins, directions, (-2, -2, -2), (0.5, 0.5, 0.5), 0)
    assert hits.hit.item() and hits.voxel.flatten().tolist() == [5, 5, 5]
    assert hits.face.item() == face
    # 4.75 and 5.75 voxels of 0.5 m, in units of a direction of length 2
    assert hits.t_enter.item() == pytest.approx(4.75 * 0.25)
    assert hits.t_exit.item() == pytest.approx(5.75 * 0.25)


@pytest.mark.parametrize("cast", [ray_cast, ray_cast_reference])
def test_start_in_occupied_voxel(cast: Callable[..., RayHits], device: str) -> None:
    grids = torch.ones(1, 3, 3, 3, dtype=torch.uint8, device=device)
    origins, directions = torch.tensor([[[1.5, 1.5, 1.5]], [[0.0, 1.0, 0.0]]], device=device)
    hits = cast(grids, origins, directions, *UNIT)
    assert hits.voxel.flatten().tolist() == [1, 1, 1] and hits.hit.item()
    assert (hits.t_enter.item(), hits.t_exit.item(), hits.face.item()) == (0.0, 0.5, -1)


@pytest.mark.parametrize("cast", [ray_cast, ray_cast_reference])
def test_no_hit_ends_in_last_voxel(cast: Callable[..., RayHits], device: str) -> None:
    grids = torch.zeros(1, 70, 9, 9, dtype=torch.uint8, device=device)
    origins, directions = torch.tensor([[[0.5, 4.5, 4.5]], [[1.0, 0.0, 0.0]]], device=device)
    hits = cast(grids, origins, directions, *UNIT)
    assert hits.voxel.flatten().tolist() == [69, 4, 4] and not hits.hit.item()
    assert (hits.t_enter.item(), hits.t_exit.item(), hits.face.item()) == (68.5, 69.5, 0)


@pytest.mark.parametrize("cast", [ray_cast, ray_cast_reference])
@pytest.mark.parametrize(
    ("origin", "direction"),
    [
        ((1.5, 1.5, 1.5), (0.0, 0.0, 0.0)),
        ((1.5, 1.5, 1.5), (math.nan, 1.0, 0.0)),
        ((1.5, 1.5, 1.5), (math.inf, 1.0, 0.0)),
        ((1.5, math.nan, 1.5), (1.0, 0.0, 0.0)),
        ((-math.inf, 1.5, 1.5), (1.0, 0.0, 0.0)),
        ((-1.0, 1.5, 1.5), (-1.0, 0.0, 0.0)),  # points away from the grid
        ((-1.0, 1.5, 1.5), (0.0, 1.0, 0.0)),  # passes by
        ((-1.0, 1.5, 1.5), (1.0, 3.0, 0.0)),  # passes the corner
        ((3.0, 1.5, 1.5), (1.0, 0.0, 0.0)),  # on the upper border, outward
        ((-1e12, 1.5, 1.5), (1.0, 0.0, 0.0)),
    ],
)
def test_rays_that_miss(
    cast: Callable[..., RayHits], origin: tuple[float, ...], direction: tuple[float, ...],
    device: str,
) -> None:  # fmt: skip
    grids = torch.ones(1, 3, 3, 3, dtype=torch.uint8, device=device)
    origins, directions = torch.tensor([[origin], [direction]], device=device)
    hits = cast(grids, origins, directions, *UNIT)
    assert hits.voxel.flatten().tolist() == [-1, -1, -1]
    assert not hits.hit.item() and hits.face.item() == -1
    assert hits.t_enter.item() == hits.t_exit.item() == 0


@pytest.mark.parametrize("cast", [ray_cast, ray_cast_reference])
def test_enters_from_outside(cast: Callable[..., RayHits], device: str) -> None:
    grids = torch.ones(1, 3, 3, 3, dtype=torch.uint8, device=device)
    origins = torch.tensor([[-2.0, 1.5, 1.5], [3.0, 1.5, 1.5], [1.5, 1.5, 1e6]])
    directions = torch.tensor([[1.0, 0.0, 0.0], [-1.0, 0.0, 0.0], [0.0, 0.0, -1.0]])
    hits = cast(grids, origins.to(device), directions.to(device), *UNIT)
    ends = [hits.voxel[0, i, i].tolist() for i in range(3)]
    assert ends == [[0, 1, 1], [2, 1, 1], [1, 1, 2]]
    assert [hits.face[0, i, i].item() for i in range(3)] == [0, 1, 5]
    assert [hits.t_enter[0, i, i].item() for i in range(3)] == [2.0, 0.0, 1e6 - 3]


@pytest.mark.parametrize("cast", [ray_cast, ray_cast_reference])
@pytest.mark.parametrize(
    ("max_distance", "last", "hit"), [(40.49, 40, False), (40.5, 41, True), (0.0, 0, False)]
)
def test_max_distance(
    cast: Callable[..., RayHits], max_distance: float, last: int, hit: bool, device: str
) -> None:
    grids = torch.zeros(1, 70, 3, 3, dtype=torch.uint8, device=device)
    grids[0, 41] = 1
    origin, direction = torch.tensor([[[0.5, 1.5, 1.5]], [[1.0, 0.0, 0.0]]], device=device)
    hits = cast(grids, origin, direction, *UNIT, max_distance)
    assert hits.voxel.flatten().tolist() == [last, 1, 1] and hits.hit.item() == hit


@given(data=st.data())
def test_native_equals_reference_and_plain_walk(device: str, data: Any) -> None:
    """Results are bitwise equal on grids near the block widths, with rays through corners."""
    shape = data.draw(st.tuples(*[st.sampled_from([1, 3, 4, 5, 16, 17, 33, 66])] * 3))
    generator = torch.Generator().manual_seed(data.draw(st.integers(0, 2**31)))
    density = data.draw(st.sampled_from([0.0, 1e-4, 1e-2, 0.3]))
    grids = (torch.rand(2, *shape, generator=generator) < density).to(torch.uint8) * 5
    dtype = data.draw(st.sampled_from([torch.float32, torch.float64]))
    size = torch.tensor(shape, dtype=dtype)
    origins = (torch.rand(6, 3, generator=generator, dtype=dtype) * 1.6 - 0.3) * size
    directions = torch.randn(24, 3, generator=generator, dtype=dtype)
    if data.draw(st.booleans()):  # ties: everything on a lattice
        origins, directions = origins.round() / 2, directions.round()
    if data.draw(st.booleans()):
        directions[torch.rand(24, 3, generator=generator) < 0.4] = 0
    max_distance = data.draw(st.sampled_from([math.inf, 0.0, 3.5, 20.0]))
    if data.draw(st.booleans()):  # each origin its own
        directions = directions.view(6, 4, 3)
    args = (grids.to(device), origins.to(device), directions.to(device), *UNIT)
    hits = ray_cast(*args, max_distance)
    assert_same(hits, ray_cast_reference(*args, max_distance))
    assert_same(hits, _ray_cast(*args, max_distance, False))


def test_skipping_changes_nothing_in_a_large_grid(device: str) -> None:
    grids = torch.zeros(1, 300, 280, 70, dtype=torch.uint8)
    grids[0, :, :, :3] = 1
    grids[0] |= random_grids((300, 280, 70), 2e-5)
    origins = torch.tensor([[30.2, 28.1, 1.5], [-9.0, 28.0, 5.0], [31.03, 0.71, 30.0]])
    directions = torch.randn(4000, 3)
    args = (
        grids.to(device),
        origins.to(device),
        directions.to(device),
        (0, 0, 0),
        (0.2, 0.2, 0.2),
        0,
        math.inf,
    )
    assert_same(_ray_cast(*args, True), _ray_cast(*args, False))


def test_threads_change_nothing(at_threads: Callable[..., Any]) -> None:
    args = (
        random_grids((2, 50, 60, 20), 1e-3), torch.rand(3, 3) * 20, torch.randn(3000, 3), *UNIT
    )  # fmt: skip
    assert_same(at_threads(1, ray_cast, *args), at_threads(2, ray_cast, *args))


def test_without_avx2(run_in_new_process: Callable[..., None]) -> None:
    """The portable code is bitwise equal; the choice is made once per process."""
    run_in_new_process(
        """
import torch
from models.ops import ray_cast, ray_cast_reference
from models.ops.ray_cast import _ray_cast
torch.manual_seed(0)
grids = (torch.rand(2, 70, 66, 33) < 0.02).to(torch.uint8)
origins = (torch.rand(5, 3) * 1.2 - 0.1) * torch.tensor([70.0, 66.0, 33.0])
unit = ((0, 0, 0), (1, 1, 1), 0)
for directions in (torch.randn(60, 3), torch.randn(60, 3).round()):
    hits = ray_cast(grids, origins, directions, *unit, 40.0)
    reference = ray_cast_reference(grids, origins, directions, *unit, 40.0)
    plain = _ray_cast(grids, origins, directions, *unit, 40.0, False)
    for a, b, c in zip(hits, reference, plain):
        assert torch.equal(a, b) and torch.equal(a, c)
    assert hits.hit.any() and not hits.hit.all()
""",
        OPUS_DISABLE_AVX2="1",
    )


def test_strided_arguments(device: str) -> None:
    grids = random_grids((20, 40, 30, 2), 0.01).to(device).permute(3, 1, 0, 2)
    origins = torch.rand(3, 4, device=device).t() * 20
    directions = torch.randn(50, 6, device=device)[:, ::2]
    plain = ray_cast(grids.contiguous(), origins.contiguous(), directions.contiguous(), *UNIT)
    assert_same(ray_cast(grids, origins, directions, *UNIT), plain)


@pytest.mark.parametrize(("g", "o", "d"), [(0, 2, 3), (1, 0, 3), (1, 2, 0)])
@pytest.mark.parametrize("cast", [ray_cast, ray_cast_reference])
def test_no_rays(cast: Callable[..., RayHits], g: int, o: int, d: int, device: str) -> None:
    grids = torch.ones(g, 2, 2, 2, dtype=torch.uint8, device=device)
    hits = cast(grids, torch.ones(o, 3, device=device), torch.ones(d, 3, device=device), *UNIT)
    assert hits.voxel.shape == (g, o, d, 3) and hits.t_exit.shape == (g, o, d)


def test_pyramid_takes_over_changes(device: str) -> None:
    grids = random_grids((2, 90, 40, 21), 1e-3).to(device) * 4
    pyramid = OccupancyPyramid(grids, 0)
    grids[:, 3:20, 5:6, 7:] = 2
    grids[:, 60:88, :, :9] = 0
    pyramid.update((3, 5, 7), (20, 6, 21))
    pyramid.update((60, -5, 0), (88, 100, 9))
    assert torch.equal(pyramid.masks, OccupancyPyramid(grids, 0).masks)
    rays = (torch.rand(4, 3, device=device) * 20, torch.randn(300, 3, device=device))
    assert_same(ray_cast(pyramid, *rays, *UNIT), ray_cast_reference(grids, *rays, *UNIT))
    pyramid.update((5, 5, 5), (5, 9, 9))  # an empty box


def test_bad_arguments() -> None:
    grids, rays = torch.zeros(1, 4, 4, 4, dtype=torch.uint8), torch.ones(2, 3)
    with pytest.raises(ValueError, match=r"grids must be uint8 \[G, X, Y, Z\].*float32 \[4, 4\]"):
        ray_cast(torch.zeros(4, 4), rays, rays, *UNIT)
    with pytest.raises(ValueError, match=r"origins must be \[n, 3\], got \[2, 2\]"):
        ray_cast(grids, rays[:, :2], rays, *UNIT)
    with pytest.raises(ValueError, match=r"directions must be \[n, 3\], got \[3, 2, 3\]"):
        ray_cast(grids, rays, torch.ones(3, 2, 3), *UNIT)  # 3 of them for 2 origins
    with pytest.raises(ValueError, match="one dtype"):
        ray_cast(grids, rays.double(), rays, *UNIT)
    with pytest.raises(ValueError, match="float32 or float64"):
        ray_cast(grids, rays.half(), rays.half(), *UNIT)
    with pytest.raises(ValueError, match="voxel_size"):
        ray_cast(grids, rays, rays, (0, 0, 0), (1, 0, 1), 0)
    with pytest.raises(ValueError, match="empty_label=0, got 17"):
        ray_cast(OccupancyPyramid(grids, 0), rays, rays, (0, 0, 0), (1, 1, 1), 17)
    with pytest.raises(ValueError, match="contiguous"):
        OccupancyPyramid(torch.zeros(1, 4, 5, 6, dtype=torch.uint8).transpose(1, 2), 0)
    with pytest.raises(ValueError, match=r"masks must be int64 \[G, 3\]"):
        native("ray_cast")(
            torch.zeros(1, 5, dtype=torch.int64), [4, 4, 4], rays, rays, [0.0] * 3, [1.0] * 3,
            math.inf, True,
        )  # fmt: skip


def test_opcheck(device: str) -> None:
    grids = random_grids((2, 9, 17, 5), 0.1).to(device)
    origins, directions = torch.rand(2, 3, device=device) * 5, torch.randn(7, 3, device=device)
    masks = native("occupancy_masks")(grids, 0)
    torch.library.opcheck(torch.ops.opus.occupancy_masks.default, (grids, 0))
    torch.library.opcheck(
        torch.ops.opus.occupancy_masks_update_.default, (masks, grids, 0, [0, 0, 0], [9, 9, 5])
    )
    torch.library.opcheck(
        torch.ops.opus.ray_cast.default,
        (masks, [9, 17, 5], origins, directions, [0.0] * 3, [1.0] * 3, math.inf, True),
    )


def test_more_voxels_than_32_bits_can_number(tmp_path: Path) -> None:
    """2,560 x 1,280 x 1,312 = 4.3e9 voxels of a sparse file: only used pages take memory."""
    shape = (1, 2560, 1280, 1312)
    grids = torch.from_file(
        str(tmp_path / "grids"), True, math.prod(shape), dtype=torch.uint8
    ).view(shape)
    words = sum(math.prod(-(-n // width) for n in shape[1:]) for width in (4, 16, 64))
    masks = torch.from_file(str(tmp_path / "masks"), True, words, dtype=torch.int64)[None]
    grids[0, 2559, 1279, 1311] = 7
    assert grids.numel() > 2**32
    pyramid = OccupancyPyramid.__new__(OccupancyPyramid)
    pyramid.grids, pyramid.empty_label, pyramid.masks = grids, 0, masks
    pyramid.update((2556, 1276, 1308), shape[1:])
    origin, up = torch.tensor([[2559.5, 1279.5, 1300.5]]), torch.tensor([[0.0, 0.0, 1.0]])
    hits = ray_cast(pyramid, origin, up, *UNIT)
    assert hits.voxel.flatten().tolist() == [2559, 1279, 1311] and hits.hit.item()
    assert hits.t_enter.item() == 10.5
