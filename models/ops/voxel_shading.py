"""Colours of ray hits on voxel faces: baked light, lines along voxel edges, fog.

Dimensions:
    X Y Z voxels along the axes, N rays, C classes.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from ._extension import native, on_load
from .ray_cast import RayHits

__all__ = ["ShadedHits", "VoxelScene", "VoxelView", "voxel_shading", "voxel_shading_reference"]


class VoxelScene(NamedTuple):
    """What rays hit.

    Attributes:
        labels: uint8 [X, Y, Z], indices into ``albedo`` wherever a ray may hit.
        albedo: float32 [C, 3].
        light: for each axis of a face's normal, float32 [entries, 2]: sunlight and ambient light at
            the corners of faces. The coordinate along the axis is that of the cell in front of the
            face plus one, the other two are the corner's.
        strides: for each axis of a face's normal, the entries per step in x, y, z.
        brightness: [6][2] how bright sunlight and ambient light make a face of the orientations
            -x, +x, -y, +y, -z, +z.
        grid_min: lower corner of the grid (x, y, z), metres.
        voxel_size: edge lengths of a voxel (x, y, z), metres.
    """

    labels: Tensor
    albedo: Tensor
    light: tuple[Tensor, Tensor, Tensor]
    strides: Sequence[Sequence[int]]
    brightness: Sequence[Sequence[float]]
    grid_min: Sequence[float]
    voxel_size: Sequence[float]


class VoxelView(NamedTuple):
    """From where, and how lines and fog are drawn.

    Attributes:
        position: (x, y, z) where all rays start, metres in the grid's frame.
        rotation: [3][3] the camera's right, down and forward axes in the grid's frame.
        focal_px: focal length in pixels.
        edges: strength of the lines along voxel edges, their width in pixels, and the pixels that
            count as one (posters have thicker lines).
        fog: share of fog at its full, where it starts, and metres from there to its full.
    """

    position: Sequence[float]
    rotation: Sequence[Sequence[float]]
    focal_px: float
    edges: tuple[float, float, float]
    fog: tuple[float, float, float]


class ShadedHits(NamedTuple):
    """What is seen along each ray.

    Attributes:
        colour: float32 [N, 4], red, green, blue times the last, which is one less the fog; 0 where
            nothing is hit.
        key: int32 [N], one number for label and plane of the face: ``(8 * index along the normal +
            face) * 256 + label``; -1 where nothing is hit.
    """

    colour: Tensor
    key: Tensor


def voxel_shading(
    scene: VoxelScene, view: VoxelView, hits: RayHits, directions: Tensor
) -> ShadedHits:
    """Shade the hits of one origin in one grid.

    CPU tensors go through the native operation; CUDA tensors through the plain-torch twin.

    Args:
        scene: what was hit.
        view: from where.
        hits: of :func:`ray_cast`, with G = O = 1 and float32 distances.
        directions: float32 [N, 3], unit length.

    Raises:
        ValueError: a shape or dtype does not fit.
        ExtensionError: CPU tensors, and the native extension is not built.
    """
    _check_arguments(scene, hits, directions)
    if directions.is_cuda:
        return voxel_shading_reference(scene, view, hits, directions)
    numbers = [*view.position, *(c for row in view.rotation for c in row), view.focal_px]
    return ShadedHits(
        *native("voxel_shading")(
            scene.labels,
            hits.voxel[0, 0],
            hits.hit[0, 0],
            hits.t_enter[0, 0],
            hits.face[0, 0],
            directions,
            *scene.light,
            scene.albedo,
            [int(s) for row in scene.strides for s in row],
            [float(b) for row in scene.brightness for b in row],
            [float(value) for value in (*scene.grid_min, *scene.voxel_size)],
            [float(value) for value in numbers],
            [float(value) for value in view.edges],
            [float(value) for value in view.fog],
        )
    )


def voxel_shading_reference(
    scene: VoxelScene, view: VoxelView, hits: RayHits, directions: Tensor
) -> ShadedHits:
    """Plain-torch twin of :func:`voxel_shading`. Same arguments."""
    _check_arguments(scene, hits, directions)
    hit = hits.hit[0, 0]
    voxel, distance = hits.voxel[0, 0][hit].long(), hits.t_enter[0, 0][hit]
    face, rays = hits.face[0, 0][hit].long(), directions[hit]
    # A ray that starts inside a voxel enters no face: take the one it looks through.
    main = rays.abs().argmax(dim=1)
    looking = 2 * main + (rays.gather(1, main[:, None])[:, 0] < 0).long()
    face = torch.where(face >= 0, face, looking)
    axes = (face[:, None] // 2 + torch.arange(3, device=face.device)) % 3
    size, low, eye = (rays.new_tensor(v) for v in (scene.voxel_size, scene.grid_min, view.position))
    place = (distance[:, None] * rays / size + (eye - low) / size - voxel).clamp(0, 1)
    place = place.gather(1, axes[:, 1:])
    shade = _light(scene, face, axes, voxel, place)
    shade = shade * _edge_shade(scene, view, axes, place, distance, rays)
    depth = ((distance - view.fog[1]) / view.fog[2]).clamp(0, 1)
    alpha = (1 - view.fog[0] * depth * depth)[:, None]
    label = scene.labels[voxel[:, 0], voxel[:, 1], voxel[:, 2]].long()
    colour = directions.new_zeros(len(directions), 4)
    colour[hit] = torch.cat([scene.albedo[label] * shade[:, None] * alpha, alpha], dim=1)
    key = torch.full((len(directions),), -1, dtype=torch.int32, device=directions.device)
    plane = 8 * voxel.gather(1, axes[:, :1])[:, 0] + face
    key[hit] = (plane * 256 + label).int()
    return ShadedHits(colour, key)


def _light(scene: VoxelScene, face: Tensor, axes: Tensor, voxel: Tensor, place: Tensor) -> Tensor:
    """Brightness [n] of points at ``place`` [n, 2] of faces, bilinear between their corners."""
    strides = torch.tensor(scene.strides, device=face.device)[axes[:, 0]]
    step = strides.gather(1, axes)
    entry = (voxel * strides).sum(dim=1) + 2 * step[:, 0] * (face % 2)
    starts = [0, len(scene.light[0]), len(scene.light[0]) + len(scene.light[1])]
    table = torch.cat(scene.light)
    entry = entry + torch.tensor(starts, device=face.device)[axes[:, 0]]
    u, v = place[:, :1], place[:, 1:]
    low = torch.lerp(table[entry], table[entry + step[:, 1]], u)
    entry = entry + step[:, 2]
    high = torch.lerp(table[entry], table[entry + step[:, 1]], u)
    return (torch.lerp(low, high, v) * place.new_tensor(scene.brightness)[face]).sum(dim=1)


def _edge_shade(
    scene: VoxelScene, view: VoxelView, axes: Tensor, place: Tensor, distance: Tensor, rays: Tensor
) -> Tensor:
    """Brightness factor [n] of the lines along voxel edges.

    A line is as wide on screen wherever it lies, and disappears where voxels shrink to a few
    pixels (lines would then only make the surface darker and shimmer).
    """
    strength, line_width, scale = view.edges
    rotation = rays.new_tensor(view.rotation)
    local = rays @ rotation.T
    x, y = local[:, :1] / local[:, 2:], local[:, 1:2] / local[:, 2:]
    px_per_m = view.focal_px * (x * x + y * y + 1).sqrt() / distance[:, None].clamp_min(1e-3)
    # d(pixel) for a step of one voxel along the two axes of the face: [n, 2]
    edge = rays.new_tensor(scene.voxel_size)[axes[:, 1:]] * px_per_m
    right, down, forward = (row[axes[:, 1:]] for row in rotation)
    step_x, step_y = (right - x * forward) * edge, (down - y * forward) * edge
    area = (step_x[:, 0] * step_y[:, 1] - step_y[:, 0] * step_x[:, 1]).abs()[:, None]
    # Extent of a voxel across its edges, in pixels.
    extent = area / (step_x**2 + step_y**2).sqrt().flip(1).clamp_min(1e-6)
    # A pixel is covered by as much of the line as lies within half a pixel of its middle.
    width = line_width * scale
    offset = torch.minimum(place, 1 - place) * extent
    cover = (0.5 * width + 0.5 - offset).clamp(0, min(width, 1.0))
    line = (cover * ((extent / scale - 3) / 8).clamp(0, 1)).amax(dim=1)
    return 1 - strength * line


def _check_arguments(scene: VoxelScene, hits: RayHits, directions: Tensor) -> None:
    count = len(directions)
    if directions.shape != (count, 3) or directions.dtype != torch.float32:
        raise ValueError(
            f"directions must be float32 [N, 3], got {directions.dtype} {list(directions.shape)}"
        )
    if hits.hit.shape != (1, 1, count) or hits.t_enter.dtype != torch.float32:
        raise ValueError(
            f"hits must be float32 [1, 1, {count}] as the directions, got {hits.t_enter.dtype} "
            f"{list(hits.hit.shape)}"
        )
    if scene.labels.ndim != 3 or scene.labels.dtype != torch.uint8:
        raise ValueError(
            f"labels must be uint8 [X, Y, Z], got {scene.labels.dtype} {list(scene.labels.shape)}"
        )
    if scene.albedo.ndim != 2 or scene.albedo.shape[1] != 3 or scene.albedo.dtype != torch.float32:
        raise ValueError(
            f"albedo must be float32 [C, 3], got {scene.albedo.dtype} {list(scene.albedo.shape)}"
        )


@on_load
def _register() -> None:
    @torch.library.register_fake("opus::voxel_shading")
    def _(
        labels: Tensor,
        voxel: Tensor,
        hit: Tensor,
        distance: Tensor,
        face: Tensor,
        directions: Tensor,
        *rest: object,
    ) -> tuple[Tensor, Tensor]:
        count = directions.shape[0]
        return directions.new_empty((count, 4)), directions.new_empty((count,), dtype=torch.int32)
