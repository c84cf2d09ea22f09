"""Rendering of label grids: rays from one position, and the colours of the hit voxels.

Light, lines along voxel edges and fog are evaluated at the hit point.

Dimensions:
    X Y Z voxels along the axes, H W rays (pixels of an image), C classes, n rays with a hit.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from ._extension import native, on_load
from .ray_cast import OccupancyPyramid, ray_cast_reference

__all__ = ["ShadedRays", "VoxelScene", "VoxelView", "voxel_shading", "voxel_shading_reference"]


class VoxelScene(NamedTuple):
    """Voxels, light and materials of a scene.

    Attributes:
        pyramid: pyramid of labels uint8 [1, X, Y, Z]; non-empty labels are indices into `albedo`.
        light: float32 [Z + 2, X + 2, Y + 2, 2] as returned by `voxel_light`: sunlight and ambient
            light of the cells, with a border of one cell. Ambient light 0 marks a voxel.
        albedo: float32 [C, 3].
        brightness: [6, 2] nested, factors of sunlight and ambient light for faces with the normals
            -x, +x, -y, +y, -z, +z.
        occlusion: darkness of creases between two faces.
        grid_min: lower corner of the grid (x, y, z), metres.
        voxel_size: edge lengths of a voxel (x, y, z), metres.
    """

    pyramid: OccupancyPyramid
    light: Tensor
    albedo: Tensor
    brightness: Sequence[Sequence[float]]
    occlusion: float
    grid_min: Sequence[float]
    voxel_size: Sequence[float]

    @property
    def labels(self) -> Tensor:
        """Return the labels, uint8 [X, Y, Z]."""
        return self.pyramid.grids[0]


class VoxelView(NamedTuple):
    """Camera, and style of lines and fog.

    Attributes:
        position: (x, y, z) origin of all rays, metres in the grid's frame.
        rotation: [3, 3] nested, the camera's right, down and forward axes in the grid's frame.
        focal_px: focal length in pixels.
        edges: strength of the lines along voxel edges, their width in pixels, and a scale of the
            width (above 1 for posters).
        fog: largest share of fog, its start in metres, and the metres from start to largest share.
    """

    position: Sequence[float]
    rotation: Sequence[Sequence[float]]
    focal_px: float
    edges: tuple[float, float, float]
    fog: tuple[float, float, float]


class ShadedRays(NamedTuple):
    """Colour, face and distance of each ray's hit.

    Attributes:
        colour: float32 [H, W, 4], red, green, blue blended with the background, and the opacity:
            one minus the fog for a hit, else 0.
        key: int32 [H, W], label and plane of the face: ``(8 * index along the normal + face) * 256
            + label``; -1 without a hit.
        distance: float32 [H, W], metres; infinite without a hit.
    """

    colour: Tensor
    key: Tensor
    distance: Tensor


def voxel_shading(
    scene: VoxelScene,
    view: VoxelView,
    directions: Tensor,
    background: Tensor,
    wanted: Tensor | None = None,
) -> ShadedRays:
    """Cast rays like `ray_cast` and shade the hit voxels.

    CPU tensors use the native operation, which is fastest for similar neighbouring rays. CUDA
    tensors use the reference implementation.

    Args:
        scene: voxels, light and materials.
        view: camera and style.
        directions: float32 [H, W, 3] in the camera's axes (right, down, forward), unit length.
        background: float32 [H, 3] red, green, blue behind the rays of each row.
        wanted: bool [H, W], which rays to cast; the others have no hit. None for all.

    Raises:
        ValueError: a shape or dtype does not fit.
        ExtensionError: the tensors are on the CPU and the native extension is not built.
    """
    _check_arguments(scene, view, directions, background, wanted)
    masks = scene.pyramid.masks
    if directions.is_cuda or masks is None:
        return voxel_shading_reference(scene, view, directions, background, wanted)
    numbers = [*view.position, *(c for row in view.rotation for c in row), view.focal_px]
    return ShadedRays(
        *native("voxel_shading")(
            masks,
            scene.labels,
            scene.pyramid.empty_label,
            scene.light,
            scene.albedo,
            directions,
            wanted,
            background,
            [float(b) for row in scene.brightness for b in row],
            float(scene.occlusion),
            [float(value) for value in (*scene.grid_min, *scene.voxel_size)],
            [float(value) for value in numbers],
            [float(value) for value in view.edges],
            [float(value) for value in view.fog],
        )
    )


def voxel_shading_reference(
    scene: VoxelScene,
    view: VoxelView,
    directions: Tensor,
    background: Tensor,
    wanted: Tensor | None = None,
) -> ShadedRays:
    """Compute `voxel_shading` in plain torch (reference implementation)."""
    _check_arguments(scene, view, directions, background, wanted)
    shape = directions.shape[:2]
    behind = background[:, None].expand(*shape, 3).reshape(-1, 3)
    colour = torch.cat([behind, torch.zeros_like(behind[:, :1])], dim=1)
    local = directions.reshape(-1, 3)
    key = torch.full((len(local),), -1, dtype=torch.int32, device=local.device)
    distance = local.new_full((len(local),), math.inf)
    chosen = torch.arange(len(local), device=local.device)
    if wanted is not None:
        chosen = chosen[wanted.reshape(-1)]
    # Not a matrix product, which rounds its sums differently.
    right, down, forward = local.new_tensor(view.rotation)
    x, y, z = (local[:, i, None] for i in range(3))
    rays = x * right + y * down + z * forward
    hits = ray_cast_reference(
        scene.pyramid.grids,
        local.new_tensor([list(view.position)]),
        rays[chosen],
        scene.grid_min,
        scene.voxel_size,
        scene.pyramid.empty_label,
    )
    hit = hits.hit[0, 0]
    found = chosen[hit]
    distance[found] = hits.t_enter[0, 0][hit]
    seen, key[found] = _shade(
        scene, view, hits.voxel[0, 0][hit].long(), distance[found], hits.face[0, 0][hit].long(),
        rays[found], local[found],
    )  # fmt: skip
    colour[found] = torch.cat([seen[:, :3] + (1 - seen[:, 3:]) * behind[found], seen[:, 3:]], dim=1)
    return ShadedRays(colour.reshape(*shape, 4), key.reshape(shape), distance.reshape(shape))


def _shade(
    scene: VoxelScene, view: VoxelView, voxel: Tensor, distance: Tensor, face: Tensor,
    rays: Tensor, local: Tensor,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Return the colours [n, 4], without background, and keys [n] of hits.

    Directions [n, 3] are `rays` in the grid's axes and `local` in the camera's.
    """
    # A ray that starts inside a voxel has no entry face: use the face along its main axis.
    main = rays.abs().argmax(dim=1)
    looking = 2 * main + (rays.gather(1, main[:, None])[:, 0] < 0).long()
    face = torch.where(face >= 0, face, looking)
    axes = (face[:, None] // 2 + torch.arange(3, device=face.device)) % 3
    size, low, eye = (rays.new_tensor(v) for v in (scene.voxel_size, scene.grid_min, view.position))
    place = (distance[:, None] * rays / size + (eye - low) / size - voxel).clamp(0, 1)
    place = place.gather(1, axes[:, 1:])
    shade = _light(scene, face, axes, voxel, place)
    shade = shade * _edge_shade(scene, view, axes, place, distance, local)
    depth = ((distance - view.fog[1]) / view.fog[2]).clamp(0, 1)
    alpha = (1 - view.fog[0] * depth * depth)[:, None]
    label = scene.labels[voxel[:, 0], voxel[:, 1], voxel[:, 2]].long()
    colour = torch.cat([scene.albedo[label] * shade[:, None] * alpha, alpha], dim=1)
    plane = 8 * voxel.gather(1, axes[:, :1])[:, 0] + face
    return colour, (plane * 256 + label).int()


def _light(scene: VoxelScene, face: Tensor, axes: Tensor, voxel: Tensor, place: Tensor) -> Tensor:
    """Interpolate the brightness [n] at `place` [n, 2] on faces bilinearly from their corners."""
    step = torch.eye(3, dtype=torch.long, device=face.device)[axes]  # [n, 3, 3]
    # The cell in front of the face; the light has a border of one cell.
    front = voxel + 1 + step[:, 0] * (2 * (face % 2) - 1)[:, None]
    corners = [
        [_corner(scene, front, i * step[:, 1], j * step[:, 2]) for i in (-1, 1)] for j in (-1, 1)
    ]
    u, v = place[:, :1], place[:, 1:]
    low, high = (torch.lerp(first, second, u) for first, second in corners)
    return (torch.lerp(low, high, v) * place.new_tensor(scene.brightness)[face]).sum(dim=1)


def _corner(scene: VoxelScene, front: Tensor, to_u: Tensor, to_v: Tensor) -> Tensor:
    """Average sunlight and ambient light [n, 2] over the free cells around a face's corner.

    Args:
        scene: the scene with the light.
        front: int64 [n, 3], cells in front of the faces.
        to_u: int64 [n, 3], offset from there to the cell beyond one edge at the corner.
        to_v: int64 [n, 3], offset to the cell beyond the other edge.
    """
    around = [front, front + to_u, front + to_v, front + to_u + to_v]
    cells = torch.stack([scene.light[z, x, y] for x, y, z in (c.unbind(1) for c in around)])
    count = (cells[..., 1] > 0).sum(dim=0)
    sun, ambient = (cells.sum(dim=0) / count.clamp_min(1)[:, None]).unbind(1)
    crease = 1 - scene.occlusion * (1 - 0.25 * count)
    return torch.stack([sun, ambient * crease], dim=1)


def _edge_shade(
    scene: VoxelScene, view: VoxelView, axes: Tensor, place: Tensor, distance: Tensor, local: Tensor
) -> Tensor:
    """Return the brightness factor [n] of the lines along voxel edges.

    Lines have the same width on screen at every distance. They fade out for voxels of a few pixels,
    where they would only darken the surface and cause aliasing.
    """
    strength, line_width, scale = view.edges
    rotation = local.new_tensor(view.rotation)
    x, y = local[:, :1] / local[:, 2:], local[:, 1:2] / local[:, 2:]
    px_per_m = view.focal_px * (x * x + y * y + 1).sqrt() / distance[:, None].clamp_min(1e-3)
    # d(pixel) for a step of one voxel along the two axes of the face: [n, 2]
    edge = local.new_tensor(scene.voxel_size)[axes[:, 1:]] * px_per_m
    right, down, forward = (row[axes[:, 1:]] for row in rotation)
    step_x, step_y = (right - x * forward) * edge, (down - y * forward) * edge
    area = (step_x[:, 0] * step_y[:, 1] - step_y[:, 0] * step_x[:, 1]).abs()[:, None]
    # Extent of a voxel perpendicular to its edges, in pixels.
    extent = area / (step_x**2 + step_y**2).sqrt().flip(1).clamp_min(1e-6)
    # Coverage of a pixel: the part of the line within half a pixel of its centre.
    width = line_width * scale
    offset = torch.minimum(place, 1 - place) * extent
    cover = (0.5 * width + 0.5 - offset).clamp(0, min(width, 1.0))
    line = (cover * ((extent / scale - 3) / 8).clamp(0, 1)).amax(dim=1)
    return 1 - strength * line


def _check_arguments(
    scene: VoxelScene,
    view: VoxelView,
    directions: Tensor,
    background: Tensor,
    wanted: Tensor | None,
) -> None:
    _check_numbers(scene, view)
    if directions.ndim != 3 or directions.shape[2] != 3 or directions.dtype != torch.float32:
        raise ValueError(
            f"directions must be float32 [H, W, 3], got {directions.dtype} {list(directions.shape)}"
        )
    if background.shape != (len(directions), 3) or background.dtype != torch.float32:
        raise ValueError(
            f"background must be float32 [{len(directions)}, 3], got {background.dtype} "
            f"{list(background.shape)}"
        )
    if wanted is not None and (wanted.shape != directions.shape[:2] or wanted.dtype != torch.bool):
        raise ValueError(
            f"wanted must be bool {list(directions.shape[:2])}, got {wanted.dtype} "
            f"{list(wanted.shape)}"
        )
    if len(scene.pyramid.grids) != 1:
        raise ValueError(f"the pyramid must have one grid, got {len(scene.pyramid.grids)}")
    nx, ny, nz = scene.labels.shape
    light = scene.light
    if light.shape != (nz + 2, nx + 2, ny + 2, 2) or light.dtype != torch.float32:
        raise ValueError(
            f"light must be float32 {[nz + 2, nx + 2, ny + 2, 2]}, got {light.dtype} "
            f"{list(light.shape)}"
        )
    if scene.albedo.ndim != 2 or scene.albedo.shape[1] != 3 or scene.albedo.dtype != torch.float32:
        raise ValueError(
            f"albedo must be float32 [C, 3], got {scene.albedo.dtype} {list(scene.albedo.shape)}"
        )


def _check_numbers(scene: VoxelScene, view: VoxelView) -> None:
    """Check the lengths of all lists of numbers."""
    tables = (
        ("brightness", scene.brightness, 6, 2),
        ("rotation", view.rotation, 3, 3),
    )
    for name, table, rows, columns in tables:
        lengths = [len(row) for row in table]
        if lengths != [columns] * rows:
            raise ValueError(f"{name} must be [{rows}][{columns}], got rows of {lengths} numbers")
    lists = (
        ("grid_min", scene.grid_min), ("voxel_size", scene.voxel_size),
        ("position", view.position), ("edges", view.edges), ("fog", view.fog),
    )  # fmt: skip
    for name, numbers in lists:
        if len(numbers) != 3:
            raise ValueError(f"{name} must have three entries, got {len(numbers)}")
    if not min(scene.voxel_size) > 0:
        raise ValueError(f"voxel_size must be positive, got {list(scene.voxel_size)}")


@on_load
def _register() -> None:
    @torch.library.register_fake("opus::voxel_shading")
    def _(
        masks: Tensor,
        labels: Tensor,
        empty_label: int,
        light: Tensor,
        albedo: Tensor,
        directions: Tensor,
        *rest: object,
    ) -> tuple[Tensor, Tensor, Tensor]:
        shape = directions.shape[:2]
        return (
            directions.new_empty((*shape, 4)),
            directions.new_empty(shape, dtype=torch.int32),
            directions.new_empty(shape),
        )
