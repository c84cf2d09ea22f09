"""Light in the cells of a voxel scene: sunlight with soft shadows, ambient light with occlusion.

Dimensions:
    X Y Z voxels along the axes.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from ._extension import native, on_load

__all__ = ["sky_openness", "sun_visibility", "voxel_light", "voxel_light_reference"]

_REACH = 3  # kReach of models/csrc/voxel_light/voxel_light_cpu.cpp
# Memory order of the grid's axes in this module: long axes innermost.
_Z_FIRST = (2, 0, 1)


def voxel_light(drawn: Tensor, opaque: Tensor, sun_slope: Sequence[float]) -> Tensor:
    """Compute sunlight and ambient light in the free cells of a grid.

    See `sun_visibility` and `sky_openness` for the two values.
    CPU tensors use the native operation, CUDA tensors the reference implementation.

    Args:
        drawn: bool [X, Y, Z], visible voxels.
        opaque: bool [X, Y, Z], cells that cast shadows; may include cells that are not drawn.
        sun_slope: direction to the sun, in voxels along x and y per voxel along z.

    Returns:
        float32 [Z + 2, X + 2, Y + 2, 2], sunlight and ambient light in [0, 1], for the cells and a
        border of one fully lit cell. Both are 0 in drawn voxels; elsewhere ambient light is above
        0.

    Raises:
        ValueError: a shape or dtype does not fit.
        ExtensionError: the tensors are on the CPU and the native extension is not built.
    """
    _check_arguments(drawn, opaque, sun_slope)
    if drawn.is_cuda:
        return voxel_light_reference(drawn, opaque, sun_slope)
    light: Tensor = native("voxel_light")(drawn, opaque, [float(s) for s in sun_slope])
    return light


def voxel_light_reference(drawn: Tensor, opaque: Tensor, sun_slope: Sequence[float]) -> Tensor:
    """Compute `voxel_light` in plain torch (reference implementation)."""
    _check_arguments(drawn, opaque, sun_slope)
    free = F.pad((~drawn).float(), (1,) * 6, value=1.0)
    both = (sun_visibility(opaque, sun_slope), sky_openness(opaque))
    cells = [F.pad(light, (1,) * 6, value=1.0) * free for light in both]
    return torch.stack(cells, dim=-1).permute(*_Z_FIRST, 3).contiguous()


def sun_visibility(opaque: Tensor, sun_slope: Sequence[float]) -> Tensor:
    """Compute the fraction of the sun that is visible from each cell's centre.

    Light is propagated from layer to layer: each layer samples the one above along the sun's rays.
    Repeated interpolation makes shadows softer with distance, like the penumbra of the real sun.

    Args:
        opaque: bool [X, Y, Z].
        sun_slope: see `voxel_light`.

    Returns:
        float32 [X, Y, Z] in [0, 1]; undefined in opaque cells.
    """
    free = (~opaque).permute(_Z_FIRST).float().contiguous()
    depth, (dx, dy) = len(free), sun_slope
    light = torch.ones_like(free)
    for z in range(depth - 1, -1, -1):
        # A ray passes through neighbours in its layer before it reaches the layer above.
        here = _shift(free[z], 0.5 * dx, 0.5 * dy)
        if z + 1 < depth:
            here = here * _shift(light[z + 1] * free[z + 1], dx, dy)
        light[z] = here
    return light.permute(1, 2, 0)


def _shift(layer: Tensor, dx: float, dy: float) -> Tensor:
    """Return the bilinear sample of `layer` [X, Y] at (x + dx, y + dy); 1 outside."""
    reach = int(max(abs(dx), abs(dy))) + 2
    padded = F.pad(layer, (reach, reach, reach, reach), value=1.0)
    ix, iy = int(dx // 1), int(dy // 1)
    fx, fy = dx - ix, dy - iy
    nx, ny = layer.shape

    def part(i: int, j: int) -> Tensor:
        return padded[reach + i : reach + i + nx, reach + j : reach + j + ny]

    near = torch.lerp(part(ix, iy), part(ix + 1, iy), fx)
    far = torch.lerp(part(ix, iy + 1), part(ix + 1, iy + 1), fx)
    return torch.lerp(near, far, fy)


def sky_openness(opaque: Tensor) -> Tensor:
    """Compute ambient light from occlusion nearby: 1 in the open, less between tall objects.

    Args:
        opaque: bool [X, Y, Z].

    Returns:
        float32 [X, Y, Z] in [0.45, 1].
    """
    size = 2 * _REACH + 1
    # Count only surface cells: a roof must not be darker if the building below is filled.
    buried = F.pad(opaque, (1,) * 6, value=False)
    for axis in range(3):
        n = buried.shape[axis] - 2
        around = buried.narrow(axis, 0, n) & buried.narrow(axis, 2, n)
        buried = buried.narrow(axis, 1, n) & around
    count = (opaque & ~buried).short()
    for axis in range(3):
        count = _box_sum(count, axis)
    # One full layer of ground (or wall) next to a cell is open space and does not darken it.
    return (1.0 - 1.3 * (count / size**3 - 1.0 / size).clamp_min(0.0)).clamp(0.45, 1.0)


def _box_sum(field: Tensor, axis: int) -> Tensor:
    """Return the sum over elements within `_REACH` along an axis; elements outside count as 0."""
    pad = [0] * 6
    pad[2 * (2 - axis)] = pad[2 * (2 - axis) + 1] = _REACH
    padded, n = F.pad(field, pad), field.shape[axis]
    total = padded.narrow(axis, 0, n).clone()
    for step in range(1, 2 * _REACH + 1):
        total += padded.narrow(axis, step, n)
    return total


def _check_arguments(drawn: Tensor, opaque: Tensor, sun_slope: Sequence[float]) -> None:
    for name, grid in (("drawn", drawn), ("opaque", opaque)):
        if grid.ndim != 3 or grid.dtype != torch.bool or grid.numel() == 0:
            raise ValueError(f"{name} must be bool [X, Y, Z], got {grid.dtype} {list(grid.shape)}")
    if drawn.shape != opaque.shape:
        raise ValueError(
            "drawn and opaque must have one shape, got "
            f"{list(drawn.shape)} and {list(opaque.shape)}"
        )
    if len(sun_slope) != 2 or not all(abs(slope) <= 1e3 for slope in sun_slope):
        raise ValueError(f"sun_slope must be two numbers within 1000 voxels, got {sun_slope}")


@on_load
def _register() -> None:
    @torch.library.register_fake("opus::voxel_light")
    def _(drawn: Tensor, opaque: Tensor, sun_slope: list[float]) -> Tensor:
        nx, ny, nz = drawn.shape
        return drawn.new_empty((nz + 2, nx + 2, ny + 2, 2), dtype=torch.float32)
