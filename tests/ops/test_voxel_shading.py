"""Native shading against its reference, and both against expected pictures."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from models.ops import (
    OccupancyPyramid,
    VoxelScene,
    VoxelView,
    ray_cast,
    voxel_light,
    voxel_shading,
    voxel_shading_reference,
)

SIZE, EMPTY = (9, 7, 5), 255
GRID_MIN, VOXEL = (-2.0, -1.5, -0.5), (0.4, 0.5, 0.3)
IMPLEMENTATIONS = [voxel_shading, voxel_shading_reference]


def sparse_labels(seed: int, size: tuple[int, int, int] = SIZE, share: float = 0.3) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(0, 4, size, generator=generator, dtype=torch.uint8)
    labels[torch.rand(size, generator=generator) >= share] = EMPTY
    return labels


def make_scene(seed: int, labels: Tensor, **changes: Any) -> VoxelScene:
    """Make light with distinct random numbers, so that each one matters."""
    generator = torch.Generator().manual_seed(seed)
    nx, ny, nz = labels.shape
    light = 0.05 + 0.95 * torch.rand(nz + 2, nx + 2, ny + 2, 2, generator=generator)
    light[1:-1, 1:-1, 1:-1] *= (labels == EMPTY).permute(2, 0, 1)[..., None]
    scene = VoxelScene(
        OccupancyPyramid(labels[None], EMPTY),
        light,
        torch.rand(4, 3, generator=generator),
        [(0.1 * face, 0.9 - 0.1 * face) for face in range(6)],
        0.7,
        GRID_MIN,
        VOXEL,
    )
    return scene._replace(**changes)


def make_view(seed: int, position: tuple[float, float, float]) -> VoxelView:
    generator = torch.Generator().manual_seed(seed)
    rotation = torch.linalg.qr(torch.randn(3, 3, generator=generator, dtype=torch.float64))[0]
    return VoxelView(position, rotation.tolist(), 180.0, (0.3, 1.5, 0.8), (0.5, 2.0, 3.0))


def unit(directions: Tensor) -> Tensor:
    return directions / directions.norm(dim=-1, keepdim=True)


def pinhole(
    position: tuple[float, float, float], target: tuple[float, float, float], height: int,
    width: int, focal_px: float,
) -> tuple[VoxelView, Tensor]:  # fmt: skip
    """Return a camera's view and the directions [H, W, 3] of its pixels in camera axes."""
    forward = unit(torch.tensor(target) - torch.tensor(position)).double()
    right = torch.linalg.cross(forward, torch.tensor([0.0, 0.03, 1.0], dtype=torch.float64))
    right = right / right.norm()
    rotation = torch.stack([right, torch.linalg.cross(forward, right), forward])
    rows, columns = torch.meshgrid(
        torch.arange(height) + 0.5 - height / 2,
        torch.arange(width) + 0.5 - width / 2,
        indexing="ij",
    )
    local = torch.stack([columns / focal_px, rows / focal_px, torch.ones_like(rows)], dim=2)
    view = VoxelView(position, rotation.tolist(), focal_px, (0.3, 1.5, 0.8), (0.5, 2.0, 30.0))
    return view, unit(local)


def in_grid(view: VoxelView, directions: Tensor) -> Tensor:
    """Rotate directions from camera to grid axes, in single precision as in the cast."""
    right, down, forward = torch.tensor(view.rotation)
    x, y, z = directions.split(1, dim=-1)
    return x * right + y * down + z * forward


def towards(view: VoxelView, targets: Tensor) -> Tensor:
    """Return unit directions, in camera axes, to points of the grid's frame."""
    away = targets.double() - torch.tensor(view.position, dtype=torch.float64)
    return unit(away @ torch.tensor(view.rotation, dtype=torch.float64).T).float()


def sky(height: int) -> Tensor:
    return torch.linspace(0.2, 0.9, 3 * height).view(height, 3)


def expect_equal(scene: VoxelScene, view: VoxelView, directions: Tensor, **more: Any) -> Any:
    behind = sky(len(directions))
    native, reference = (
        shade(scene, view, directions, behind, **more) for shade in IMPLEMENTATIONS
    )
    assert torch.equal(native.key, reference.key)
    assert torch.equal(native.distance, reference.distance)
    # A point where two faces meet may be rounded to either side of an edge's line.
    close = (native.colour - reference.colour).abs().amax(dim=-1) < 2e-3
    assert close.float().mean() > 0.998
    return native


@pytest.mark.parametrize("position", [(-6.0, 0.3, 3.0), (0.1, -5.0, -2.0), (0.0, 0.0, 0.0)])
def test_native_equals_reference(position: tuple[float, float, float]) -> None:
    """Use unrelated rays in random order."""
    scene, view = make_scene(1, sparse_labels(1)), make_view(2, position)
    aim = torch.rand(50, 80, 3) * torch.tensor([3.6, 3.5, 1.5]) + torch.tensor(GRID_MIN)
    seen = expect_equal(scene, view, towards(view, aim))
    assert 0.2 < (seen.key >= 0).float().mean() <= 1.0
    assert len((seen.key[seen.key >= 0] // 256 % 8).unique()) >= 3


# Outside of the grid and within it, looking along and against every axis, steeply and flatly.
CAMERAS = [
    ((-20.0, 1.0, 14.0), (4.0, 3.0, 0.0)),
    ((30.0, 30.0, 3.0), (3.0, 3.0, 0.0)),
    ((4.0, 4.0, 90.0), (4.1, 4.2, 0.0)),
    ((4.0, 4.0, -30.0), (4.0, 5.0, 0.0)),
    ((4.0, -18.0, 0.9), (4.0, 4.0, 0.8)),
    ((4.3, 4.2, 2.1), (12.0, 4.0, 1.5)),
    ((4.3, 4.2, 2.1), (4.0, -5.0, 0.0)),
    ((4.3, 4.2, 1.3), (-3.0, 1.0, 2.5)),
]


@pytest.mark.parametrize("size", [(31, 26, 9), (16, 32, 8), (40, 3, 37)])
@pytest.mark.parametrize("share", [0.004, 0.08, 0.5])
@pytest.mark.parametrize("camera", CAMERAS)
def test_beams_of_a_camera_hit_what_single_rays_hit(
    camera: tuple[Any, Any], share: float, size: tuple[int, int, int]
) -> None:
    position, target = camera
    scene = make_scene(3, sparse_labels(4, size, share))
    view, directions = pinhole(position, target, 45, 70, 40.0 if position[2] < 60 else 400.0)
    seen = voxel_shading(scene, view, directions, sky(45))
    rays = in_grid(view, directions).view(-1, 3)
    hits = ray_cast(scene.labels[None], torch.tensor([position]), rays, GRID_MIN, VOXEL, EMPTY)
    hit = hits.hit[0, 0]
    assert torch.equal((seen.key >= 0).view(-1), hit)
    assert torch.equal(seen.distance.view(-1)[hit], hits.t_enter[0, 0][hit])
    assert seen.distance.view(-1)[~hit].isinf().all()
    x, y, z = hits.voxel[0, 0][hit].long().unbind(1)
    assert torch.equal(seen.key.view(-1)[hit] % 256, scene.labels[x, y, z].int())
    outside = hits.face[0, 0][hit] >= 0
    face = (seen.key.view(-1)[hit] // 256 % 8)[outside]
    assert torch.equal(face, hits.face[0, 0][hit][outside].int())


@pytest.mark.parametrize("camera", CAMERAS[::3])
def test_native_equals_reference_in_a_camera(camera: tuple[Any, Any]) -> None:
    position, target = camera
    scene = make_scene(5, sparse_labels(6, (31, 26, 9), 0.05))
    view, directions = pinhole(position, target, 45, 70, 40.0)
    assert (expect_equal(scene, view, directions).key >= 0).any()


@pytest.mark.parametrize("shade", IMPLEMENTATIONS)
def test_only_wanted_rays_are_cast(shade: Any) -> None:
    scene = make_scene(5, sparse_labels(6, (31, 26, 9), 0.05))
    view, directions = pinhole((-20.0, 1.0, 14.0), (4.0, 3.0, 0.0), 45, 70, 60.0)
    wanted = torch.rand(45, 70, generator=torch.Generator().manual_seed(1)) < 0.3
    wanted[20:30, 10:40] = False
    whole = shade(scene, view, directions, sky(45))
    seen = shade(scene, view, directions, sky(45), wanted)
    for some, every in zip(seen, whole, strict=True):
        assert torch.equal(some[wanted], every[wanted])
    assert (seen.key[wanted] >= 0).any()
    assert (seen.key[~wanted] == -1).all() and seen.distance[~wanted].isinf().all()
    behind = torch.nn.functional.pad(sky(45), (0, 1))[:, None].expand_as(seen.colour)
    assert torch.equal(seen.colour[~wanted], behind[~wanted])


def test_what_is_no_direction_hits_nothing() -> None:
    scene = make_scene(1, sparse_labels(1))
    view = make_view(2, (-6.0, 0.3, 0.2))
    directions = towards(view, torch.tensor([0.0, 0.3, 0.2])).repeat(16, 16, 1)
    directions[3, 4] = 0
    directions[5, 6, 1] = math.nan
    directions[7, 8, 2] = math.inf
    seen = expect_equal(scene, view, directions)
    for row, column in ((3, 4), (5, 6), (7, 8)):
        assert seen.key[row, column] == -1
    assert (seen.key >= 0).sum() == 16 * 16 - 3


def test_threads_and_instruction_sets_change_nothing(
    at_threads: Callable[..., Any], run_in_new_process: Callable[..., None], tmp_path: Any
) -> None:
    scene = make_scene(5, sparse_labels(6, (31, 26, 9), 0.05))
    view, directions = pinhole((-20.0, 1.0, 14.0), (4.0, 3.0, 0.0), 90, 70, 60.0)
    one, three = (at_threads(n, voxel_shading, scene, view, directions, sky(90)) for n in (1, 3))
    for a, b in zip(one, three, strict=True):
        assert torch.equal(a, b)
    arguments = [directions, sky(90)]
    torch.save([list(one), list(scene[1:]), scene.labels, list(view), arguments], tmp_path / "x")
    code = f"""
import torch
from models.ops import OccupancyPyramid, VoxelScene, VoxelView, voxel_shading
expected, rest, labels, view, arguments = torch.load({str(tmp_path / "x")!r})
scene = VoxelScene(OccupancyPyramid(labels[None], {EMPTY}), *rest)
for a, b in zip(voxel_shading(scene, VoxelView(*view), *arguments), expected):
    assert torch.equal(a, b)
"""
    run_in_new_process(code, OPUS_DISABLE_AVX2="1")


@pytest.mark.parametrize("shade", IMPLEMENTATIONS)
def test_a_face_by_hand(shade: Any) -> None:
    """A voxel from above has its colour times its light, fog, and a darker edge."""
    labels = torch.full(SIZE, EMPTY, dtype=torch.uint8)
    labels[4, 3, 2] = 2
    scene = make_scene(3, labels)
    # Top of the voxel: z = -0.5 + 3 * 0.3 = 0.4, its middle at x = -0.2, y = 0.25.
    eye = (-0.2, 0.25, 4.4)
    rotation = [[0.0, -1.0, 0.0], [-1.0, 0.0, 0.0], [0.0, 0.0, -1.0]]
    view = VoxelView(eye, rotation, 400.0, (0.3, 2.0, 1.0), (0.5, 2.0, 8.0))
    target = torch.tensor([[-0.2, 0.25, 0.4], [-0.3, 0.25, 0.4], [-0.001, 0.25, 0.4], [5, 5, 0.4]])
    behind = torch.tensor([[0.1, 0.5, 0.9]])
    seen = shade(scene, view, towards(view, target)[None], behind)
    colour = seen.colour[0]
    assert colour[3].tolist() == pytest.approx([0.1, 0.5, 0.9, 0.0])
    colour = torch.cat([colour[:, :3] - (1 - colour[:, 3:]) * behind, colour[:, 3:]], dim=1)
    fog = 1 - 0.5 * ((4.0 - 2.0) / 8.0) ** 2
    # Cells of the layer above the voxel, which lie one further in the light.
    cells = scene.light[3 + 1]
    corners = [cells[4 + i : 6 + i, 3 + j : 5 + j].mean(dim=(0, 1)) for i in (0, 1) for j in (0, 1)]
    sun, ambient = scene.brightness[5]

    def brightness(along_x: float) -> Tensor:
        weights = (0.5 * (1 - along_x), 0.5 * (1 - along_x), 0.5 * along_x, 0.5 * along_x)
        light = sum(w * c for w, c in zip(weights, corners, strict=True))
        return sun * light[0] + ambient * light[1]

    middle = torch.cat([scene.albedo[2] * brightness(0.5) * fog, torch.tensor([fog])])
    torch.testing.assert_close(colour[0], middle, rtol=1e-4, atol=1e-5)
    quarter = scene.albedo[2] * brightness(0.25)
    torch.testing.assert_close(colour[1, :3], quarter * fog, rtol=2e-3, atol=1e-4)
    # 0.001 m from the edge is 0.1 pixels: the line covers the pixel wholly.
    edge = scene.albedo[2] * brightness(0.9975) * (1 - 0.3) * fog
    torch.testing.assert_close(colour[2, :3], edge, rtol=2e-3, atol=1e-4)
    assert seen.key[0].tolist() == [(8 * 2 + 5) * 256 + 2] * 3 + [-1]
    torch.testing.assert_close(seen.distance[0, 0], torch.tensor(4.0))


@pytest.mark.parametrize("shade", IMPLEMENTATIONS)
def test_crease_between_ground_and_wall_by_hand(shade: Any) -> None:
    """Shade an upper face next to a wall, under a sun overhead."""
    labels = torch.full((5, 5, 4), EMPTY, dtype=torch.uint8)
    labels[:, :, 0] = 0
    labels[3, :, 1] = 0
    drawn = labels != EMPTY
    scene = make_scene(
        1,
        labels,
        light=voxel_light(drawn, drawn, (0.0, 0.0)),
        albedo=torch.ones(1, 3),
        occlusion=0.8,
        grid_min=(0.0, 0.0, 0.0),
        voxel_size=(1.0, 1.0, 1.0),
    )
    eye = (2.5, 2.5, 60.0)
    rotation = [[0.0, -1.0, 0.0], [-1.0, 0.0, 0.0], [0.0, 0.0, -1.0]]
    view = VoxelView(eye, rotation, 100.0, (0.0, 0.0, 1.0), (0.0, 1.0, 1.0))
    # Close to the two corners of voxel (2, 2, 0) at y = 2: one in the open, one at the wall.
    target = torch.tensor([[2.0001, 2.0001, 1.0], [2.9999, 2.0001, 1.0]])
    directions = towards(view, target)[None]

    def light(sun: float, ambient: float) -> list[float]:
        lit = scene._replace(brightness=[(sun, ambient)] * 6)
        seen = shade(lit, view, directions, torch.zeros(1, 3))
        assert seen.key[0].tolist() == [5 * 256, 5 * 256]
        return seen.colour[0, :, 0].tolist()

    assert light(1.0, 0.0) == pytest.approx([1.0, 1.0], abs=1e-3), "a sun overhead is not blocked"
    open_side, wall_side = light(0.0, 1.0)
    assert wall_side / open_side == pytest.approx(1 - 0.8 * 0.5, rel=0.2), "half of it is wall"


@pytest.mark.parametrize("shade", IMPLEMENTATIONS)
def test_wrong_arguments_are_named(shade: Any) -> None:
    scene, view = make_scene(1, sparse_labels(1)), make_view(2, (-6.0, 0.0, 0.0))
    directions, behind = unit(torch.rand(5, 6, 3) + 0.1), sky(5)
    with pytest.raises(ValueError, match=r"directions must be float32 \[H, W, 3\], got torch.fl"):
        shade(scene, view, directions.double(), behind)
    with pytest.raises(ValueError, match=r"directions must be float32 \[H, W, 3\]"):
        shade(scene, view, directions[0], behind)
    with pytest.raises(ValueError, match=r"background must be float32 \[5, 3\]"):
        shade(scene, view, directions, behind[:4])
    with pytest.raises(ValueError, match=r"wanted must be bool \[5, 6\]"):
        shade(scene, view, directions, behind, torch.ones(6, 5, dtype=torch.bool))
    with pytest.raises(ValueError, match=r"albedo must be float32 \[C, 3\]"):
        shade(scene._replace(albedo=scene.albedo[:, :2]), view, directions, behind)
    with pytest.raises(ValueError, match=r"light must be float32 \[7, 11, 9, 2\]"):
        shade(scene._replace(light=scene.light[1:]), view, directions, behind)
    two = OccupancyPyramid(scene.labels.expand(2, *SIZE).contiguous(), EMPTY)
    with pytest.raises(ValueError, match="one grid, got 2"):
        shade(scene._replace(pyramid=two), view, directions, behind)


def test_labels_beyond_the_colours_are_refused() -> None:
    scene, view = make_scene(1, sparse_labels(1)), make_view(2, (-6.0, 0.3, 3.0))
    aim = torch.rand(10, 10, 3) * torch.tensor([3.6, 3.5, 1.5]) + torch.tensor(GRID_MIN)
    with pytest.raises(ValueError, match="albedo has 1 colours"):
        few = scene._replace(albedo=scene.albedo[:1])
        voxel_shading(few, view, towards(view, aim), sky(10))
