"""Native light of cells against its reference, and both against expected properties."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from models.ops import voxel_light, voxel_light_reference

IMPLEMENTATIONS = [voxel_light, voxel_light_reference]
OVERHEAD = (0.0, 0.0)


def street(size: tuple[int, int, int], seed: int) -> Tensor:
    """Return ground, boxes on it and loose voxels: bool [X, Y, Z]."""
    generator = torch.Generator().manual_seed(seed)
    grid = torch.rand(size, generator=generator) < 0.03
    grid[:, :, : max(1, size[2] // 5)] = True
    for _ in range(6):
        x, y = (int(torch.randint(0, n, (), generator=generator)) for n in size[:2])
        grid[x : x + 4, y : y + 3, : size[2] // 2] = True
    return grid


def of_cells(light: Tensor) -> tuple[Tensor, Tensor]:
    """Return sunlight and ambient light [X, Y, Z] without the border."""
    sun, sky = light[1:-1, 1:-1, 1:-1].permute(1, 2, 0, 3).unbind(-1)
    return sun, sky


@pytest.mark.parametrize("size", [(33, 47, 16), (1, 1, 1), (5, 40, 2), (17, 4, 9)])
@pytest.mark.parametrize("slope", [OVERHEAD, (-0.63, 0.53), (1.0, -2.4), (0.5, 7.9)])
def test_native_equals_reference(size: tuple[int, int, int], slope: tuple[float, float]) -> None:
    drawn = street(size, 1)
    opaque = drawn | street(size, 2)
    native, reference = (shine(drawn, opaque, slope) for shine in IMPLEMENTATIONS)
    assert native.shape == reference.shape and native.is_contiguous() and reference.is_contiguous()
    assert torch.equal(native[..., 1], reference[..., 1])
    torch.testing.assert_close(native[..., 0], reference[..., 0], rtol=0, atol=2e-6)


@pytest.mark.parametrize("shine", IMPLEMENTATIONS)
def test_under_a_roof(shine: Any) -> None:
    opaque = torch.zeros(12, 12, 8, dtype=torch.bool)
    opaque[3:9, 3:9, 6] = True
    sun, _ = of_cells(shine(torch.zeros_like(opaque), opaque, OVERHEAD))
    assert sun[3:9, 3:9, :6].max() == 0
    assert sun[:3].min() == 1 and sun[:, :, 7].min() == 1
    # At 45 degrees the shadow moves on by one voxel per layer, away from the sun.
    slanted, _ = of_cells(shine(torch.zeros_like(opaque), opaque, (-1.0, 0.0)))
    assert slanted[8, 6, 3] < 0.2 and slanted[11, 6, 3] < 0.3 and slanted[3, 6, 3] > 0.8


@pytest.mark.parametrize("shine", IMPLEMENTATIONS)
def test_ambient_light_by_hand(shine: Any) -> None:
    """Between two close walls, half of the surrounding cells belong to their surfaces."""
    opaque = torch.zeros(30, 30, 20, dtype=torch.bool)
    opaque[10] = opaque[14] = True
    _, sky = of_cells(shine(opaque, opaque, OVERHEAD))
    assert (sky[opaque] == 0).all() and (sky[~opaque] >= 0.45).all()
    # 2 of the 7 layers around are wall; the first does not dim.
    assert float(sky[12, 15, 10]) == pytest.approx(1 - 1.3 * (2 / 7 - 1 / 7), abs=1e-6)
    assert sky[20, 15, 10] == 1, "farther than three voxels away nothing is dimmed"
    # The inside of a thick wall is no surface: a wall of two layers counts as one.
    thick = opaque.clone()
    thick[:11] = True
    _, same = of_cells(shine(thick, thick, OVERHEAD))
    assert torch.equal(same[12, 15, 10], sky[12, 15, 10])


@pytest.mark.parametrize("shine", IMPLEMENTATIONS)
def test_border_is_in_the_open_and_drawn_voxels_are_dark(shine: Any) -> None:
    drawn = street((9, 8, 7), 3)
    light = shine(drawn, drawn, (-0.63, 0.53))
    border = torch.ones(light.shape[:3], dtype=torch.bool)
    border[1:-1, 1:-1, 1:-1] = False
    assert (light[border] == 1).all()
    sun, sky = of_cells(light)
    assert (sun[drawn] == 0).all() and torch.equal(sky > 0, ~drawn)


@pytest.mark.parametrize("shine", IMPLEMENTATIONS)
def test_wrong_arguments_are_named(shine: Any) -> None:
    grid = torch.zeros(3, 4, 5, dtype=torch.bool)
    with pytest.raises(ValueError, match=r"drawn must be bool \[X, Y, Z\], got torch.uint8"):
        shine(grid.byte(), grid, OVERHEAD)
    with pytest.raises(ValueError, match=r"opaque must be bool \[X, Y, Z\]"):
        shine(grid, grid[0], OVERHEAD)
    with pytest.raises(ValueError, match="one shape"):
        shine(grid, grid[:, :2], OVERHEAD)
    with pytest.raises(ValueError, match="sun_slope"):
        shine(grid, grid, (0.0, float("nan")))
