"""The native shading against its twin, and both against what a picture must show."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from models.ops import (
    VoxelScene,
    VoxelView,
    ray_cast,
    voxel_shading,
    voxel_shading_reference,
)

SIZE, EMPTY = (9, 7, 5), 255
GRID_MIN, VOXEL = (-2.0, -1.5, -0.5), (0.4, 0.5, 0.3)
IMPLEMENTATIONS = [voxel_shading, voxel_shading_reference]


def make_scene(seed: int, **changes: Any) -> VoxelScene:
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(0, 4, SIZE, generator=generator, dtype=torch.uint8)
    labels[torch.rand(SIZE, generator=generator) < 0.7] = EMPTY
    light, strides = [], []
    for axis in range(3):
        shape = [n + (2 if a == axis else 1) for a, n in enumerate(SIZE)]
        light.append(torch.rand(math.prod(shape), 2, generator=generator))
        strides.append((shape[1] * shape[2], shape[2], 1))
    scene = VoxelScene(
        labels,
        torch.rand(4, 3, generator=generator),
        (light[0], light[1], light[2]),
        strides,
        [(0.1 * face, 0.9 - 0.1 * face) for face in range(6)],
        GRID_MIN,
        VOXEL,
    )
    return scene._replace(**changes)


def make_view(seed: int, position: tuple[float, float, float]) -> VoxelView:
    generator = torch.Generator().manual_seed(seed)
    rotation = torch.linalg.qr(torch.randn(3, 3, generator=generator, dtype=torch.float64))[0]
    return VoxelView(position, rotation.tolist(), 180.0, (0.3, 1.5, 0.8), (0.5, 2.0, 3.0))


def cast(scene: VoxelScene, view: VoxelView, directions: Tensor) -> Any:
    origin = torch.tensor([view.position])
    grids = scene.labels[None]
    return ray_cast(grids, origin, directions, scene.grid_min, scene.voxel_size, EMPTY)


def unit(directions: Tensor) -> Tensor:
    return directions / directions.norm(dim=1, keepdim=True)


@pytest.mark.parametrize("position", [(-6.0, 0.3, 3.0), (0.1, -5.0, -2.0), (0.0, 0.0, 0.0)])
def test_native_equals_twin(position: tuple[float, float, float]) -> None:
    scene, view = make_scene(1), make_view(2, position)
    aim = torch.rand(4000, 3) * torch.tensor([3.6, 3.5, 1.5]) + torch.tensor(GRID_MIN)
    directions = unit(aim - torch.tensor(position))
    hits = cast(scene, view, directions)
    assert 0.2 < hits.hit.float().mean() <= 1.0
    assert len(hits.face[hits.hit].unique()) >= 3
    native, twin = (shade(scene, view, hits, directions) for shade in IMPLEMENTATIONS)
    assert torch.equal(native.key, twin.key)
    # A point where two faces meet may be rounded to either side of an edge's line.
    close = (native.colour - twin.colour).abs().amax(dim=1) < 2e-3
    assert close.float().mean() > 0.998


@pytest.mark.parametrize("shade", IMPLEMENTATIONS)
def test_a_face_by_hand(shade: Any) -> None:
    """One voxel from above: its colour times its light, the fog, and a darker edge."""
    labels = torch.full(SIZE, EMPTY, dtype=torch.uint8)
    labels[4, 3, 2] = 2
    scene = make_scene(3, labels=labels)
    # Top of the voxel: z = -0.5 + 3 * 0.3 = 0.4, its middle at x = -0.2, y = 0.25.
    eye = (-0.2, 0.25, 4.4)
    rotation = [[0.0, -1.0, 0.0], [-1.0, 0.0, 0.0], [0.0, 0.0, -1.0]]
    view = VoxelView(eye, rotation, 400.0, (0.3, 2.0, 1.0), (0.5, 2.0, 8.0))
    target = torch.tensor([[-0.2, 0.25, 0.4], [-0.3, 0.25, 0.4], [-0.001, 0.25, 0.4], [5, 5, 0.4]])
    directions = unit(target - torch.tensor(eye))
    seen = shade(scene, view, cast(scene, view, directions), directions)
    fog = 1 - 0.5 * ((4.0 - 2.0) / 8.0) ** 2
    sx, sy, _ = scene.strides[2]
    corner = 4 * sx + 3 * sy + (2 + 2)
    corners = [scene.light[2][corner + i * sx + j * sy] for i in (0, 1) for j in (0, 1)]
    sun, ambient = scene.brightness[5]

    def brightness(along_x: float) -> Tensor:
        weights = (0.5 * (1 - along_x), 0.5 * (1 - along_x), 0.5 * along_x, 0.5 * along_x)
        light = sum(w * c for w, c in zip(weights, corners, strict=True))
        return sun * light[0] + ambient * light[1]

    middle = torch.cat([scene.albedo[2] * brightness(0.5) * fog, torch.tensor([fog])])
    torch.testing.assert_close(seen.colour[0], middle, rtol=1e-4, atol=1e-5)
    quarter = scene.albedo[2] * brightness(0.25)
    torch.testing.assert_close(seen.colour[1, :3], quarter * fog, rtol=2e-3, atol=1e-4)
    # 0.001 m from the edge is 0.1 pixels: the line covers the pixel wholly.
    edge = scene.albedo[2] * brightness(0.9975) * (1 - 0.3) * fog
    torch.testing.assert_close(seen.colour[2, :3], edge, rtol=2e-3, atol=1e-4)
    assert seen.colour[3].tolist() == [0.0] * 4
    assert seen.key.tolist() == [(8 * 2 + 5) * 256 + 2] * 3 + [-1]


@pytest.mark.parametrize("shade", IMPLEMENTATIONS)
def test_wrong_arguments_are_named(shade: Any) -> None:
    scene, view = make_scene(1), make_view(2, (-6.0, 0.0, 0.0))
    directions = unit(torch.rand(5, 3) + 0.1)
    hits = cast(scene, view, directions)
    with pytest.raises(ValueError, match=r"directions must be float32 \[N, 3\], got torch.float64"):
        shade(scene, view, hits, directions.double())
    with pytest.raises(ValueError, match=r"hits must be float32 \[1, 1, 4\]"):
        shade(scene, view, hits, directions[:4])
    with pytest.raises(ValueError, match=r"albedo must be float32 \[C, 3\]"):
        shade(scene._replace(albedo=scene.albedo[:, :2]), view, hits, directions)


def test_light_and_labels_beyond_the_tables_are_refused() -> None:
    scene, view = make_scene(1), make_view(2, (-6.0, 0.3, 3.0))
    aim = torch.rand(100, 3) * torch.tensor([3.6, 3.5, 1.5]) + torch.tensor(GRID_MIN)
    directions = unit(aim - torch.tensor(view.position))
    hits = cast(scene, view, directions)
    short = (scene.light[0][:-1], *scene.light[1:])
    with pytest.raises(ValueError, match="light of axis 0"):
        voxel_shading(scene._replace(light=short), view, hits, directions)
    with pytest.raises(ValueError, match="albedo has 1 colours"):
        voxel_shading(scene._replace(albedo=scene.albedo[:1]), view, hits, directions)
