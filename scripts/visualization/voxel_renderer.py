"""Shaded pictures of a voxel grid: one native ray per pixel, more where edges need smoothing.

Every ray is cast by :func:`models.ops.ray_cast`; the rest is arithmetic on the hits. Lighting,
voxel edges and fog are evaluated analytically at the hit point, so one sample per pixel suffices
inside a surface; only pixels on a silhouette or a colour border are sampled again.

Dimension letters: X, Y, Z voxels; H, W image; N rays (or pixels).
Frames: cameras come in the ego frame and are moved into the grid's ("occ") frame here.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from models.ops import OccupancyPyramid, ray_cast
from scripts.visualization.camera import Camera
from scripts.visualization.ego_car import EgoCar
from scripts.visualization.lighting import LightTable, build_light_table
from scripts.visualization.palette import Theme

# Offsets from the pixel's centre of the second sampling: with the centre itself five points of
# which no two share a row or a column, so that near-horizontal and near-vertical borders get all
# intermediate tones.
_OFFSETS = torch.tensor([(-2.0, 1.0), (-1.0, -2.0), (1.0, 2.0), (2.0, -1.0)]) / 5

# Rays shaded at a time: few enough that temporaries stay in the processor's cache.
_CHUNK = 16384

_NOT_DRAWN = 255
_BACKGROUND, _CAR = -1, 1000
# Part of the ego frame that the car occupies, [low, high] in metres above the ground.
_EGO_BOX = np.array([[-0.64, -0.87, 0.05], [3.44, 0.87, 1.53]])


@dataclass(frozen=True)
class RenderStyle:
    """How a scene is lit and drawn.

    Attributes:
        to_sun: direction towards the sun, ego frame. Behind the chase camera's left shoulder.
        ambient: share of ambient light on a horizontal face in the open; the sun gives the rest,
            so an open horizontal face shows exactly its class colour.
        side_ambient: ambient light of vertical faces relative to horizontal ones.
        edge_strength: how much darker voxel edges are.
        edge_width_px: width of voxel edges in pixels of a 600-pixel-high image.
        fog: share of the background in the colour at the far end of the scene.
        smooth_edges: whether to sample silhouettes again.
    """

    to_sun: tuple[float, float, float] = (-0.66, 0.56, 1.05)
    ambient: float = 0.60
    side_ambient: float = 0.90
    edge_strength: float = 0.26
    edge_width_px: float = 1.0
    fog: float = 0.42
    smooth_edges: bool = True


@dataclass
class _Samples:
    """Shaded rays.

    Attributes:
        colour: float32 [N, 3] in [0, 1].
        key: int64 [N] label drawn; below zero the background, from :data:`_CAR` on the ego car.
        plane: int64 [N] the plane hit: its orientation and place in one number.
        distance: float32 [N] metres, infinite for the background.
    """

    colour: Tensor
    key: Tensor
    plane: Tensor
    distance: Tensor


class VoxelRenderer:
    """Draws one label grid from any number of cameras.

    Args:
        labels: uint8 [X, Y, Z] class of each voxel.
        grid_min: lower corner of the grid in metres.
        voxel_size: edge lengths of a voxel in metres.
        empty_label: label of free space.
        colours: uint8 [C, 3] colour of each label below C; labels from C on are not drawn.
        theme: colours of the background.
        ego2grid: [4, 4] from the ego frame to the grid's; identity for Occ3D.
        show_ego: whether to draw the ego vehicle.
        style: lighting and lines.

    Raises:
        ValueError: labels, colours or voxel sizes of a wrong shape.
    """

    def __init__(
        self,
        labels: NDArray[np.uint8] | Tensor,
        grid_min: Sequence[float],
        voxel_size: Sequence[float],
        empty_label: int,
        colours: NDArray[np.uint8],
        theme: Theme,
        ego2grid: NDArray[np.float64] | None = None,
        show_ego: bool = True,
        style: RenderStyle | None = None,
    ) -> None:
        grid = torch.as_tensor(labels).to(torch.uint8)
        if grid.ndim != 3 or grid.numel() == 0:
            raise ValueError(f"labels must be a grid [X, Y, Z], not of shape {tuple(grid.shape)}.")
        if colours.ndim != 2 or colours.shape[1] != 3 or not 0 < len(colours) < _NOT_DRAWN:
            raise ValueError(f"colours must be [C, 3], 0 < C < 255, not of shape {colours.shape}.")
        if len(grid_min) != 3 or len(voxel_size) != 3 or min(voxel_size) <= 0:
            raise ValueError("grid_min and voxel_size need three numbers, voxel_size above zero.")
        occupied = (grid < len(colours)) & (grid != empty_label)
        # One label stands for everything that is not drawn, as the ray caster knows only one.
        self._labels = torch.where(occupied, grid, torch.full_like(grid, _NOT_DRAWN)).contiguous()
        self._pyramid = OccupancyPyramid(self._labels[None], _NOT_DRAWN)
        self._grid_min = (float(grid_min[0]), float(grid_min[1]), float(grid_min[2]))
        self._voxel_size = (float(voxel_size[0]), float(voxel_size[1]), float(voxel_size[2]))
        # Black would swallow every shade and line; lift it a little.
        self._albedo = 0.07 + 0.93 * torch.from_numpy(colours.astype(np.float32)) / 255
        self._sky_top = torch.tensor(theme.sky_top) / 255
        self._sky_bottom = torch.tensor(theme.sky_bottom) / 255
        self._style = style or RenderStyle()
        self._ego2grid = np.eye(4) if ego2grid is None else np.asarray(ego2grid, dtype=np.float64)
        sun = self._ego2grid[:3, :3] @ np.asarray(self._style.to_sun)
        sun /= np.linalg.norm(sun)
        self._to_sun = (float(sun[0]), float(sun[1]), max(float(sun[2]), 0.2))
        self._car = EgoCar(self._ground_height(), self._style.to_sun) if show_ego else None
        self._light = self._build_light(occupied)

    # -- scene ---------------------------------------------------------------------------------

    def _cells_in_box(
        self, low: NDArray[np.float64], high: NDArray[np.float64]
    ) -> tuple[tuple[slice, slice, slice], NDArray[np.float64]]:
        """Cells around a box of the ego frame.

        Returns:
            Slices of the grid that contain the box, and the cells' centres in the ego frame
            [x, y, z, 3].
        """
        corners = np.array(
            [[(low, high)[b][i] for i, b in enumerate(c)] for c in np.ndindex(2, 2, 2)]
        )
        corners = corners @ self._ego2grid[:3, :3].T + self._ego2grid[:3, 3]
        corners = (corners - self._grid_min) / self._voxel_size
        shape = np.asarray(self._labels.shape)
        first = np.clip(np.floor(corners.min(axis=0)).astype(int), 0, shape)
        last = np.clip(np.ceil(corners.max(axis=0)).astype(int), first, shape)
        axes = [
            self._grid_min[i] + (np.arange(first[i], last[i]) + 0.5) * self._voxel_size[i]
            for i in range(3)
        ]
        centres = np.stack(np.meshgrid(*axes, indexing="ij"), axis=-1)
        grid2ego = np.linalg.inv(self._ego2grid)
        x, y, z = (slice(int(a), int(b)) for a, b in zip(first, last, strict=True))
        return (x, y, z), centres @ grid2ego[:3, :3].T + grid2ego[:3, 3]

    def _ground_height(self) -> float:
        """Height of the drawn ground under the ego vehicle (ego frame, metres).

        Voxels are coarse: the road's upper faces may lie up to a voxel above the true road, and
        the wheels shall stand on them.
        """
        low = np.array([_EGO_BOX[0, 0], _EGO_BOX[0, 1], -0.7])
        high = np.array([_EGO_BOX[1, 0], _EGO_BOX[1, 1], 0.7])
        where, cells = self._cells_in_box(low, high)
        filled = (self._labels[where].numpy() != _NOT_DRAWN) & (np.abs(cells[..., 2]) < 0.7)
        if not filled.any():
            return 0.0
        tops = np.where(filled, cells[..., 2], -np.inf).max(axis=2)
        return float(np.median(tops[np.isfinite(tops)]) + 0.5 * self._voxel_size[2])

    def _build_light(self, occupied: Tensor) -> LightTable:
        car_cells = None
        if self._car is not None:
            lift = np.array([0.0, 0.0, self._car.ground_m])
            where, cells = self._cells_in_box(_EGO_BOX[0] + lift, _EGO_BOX[1] + lift)
            inside = (cells >= _EGO_BOX[0] + lift) & (cells <= _EGO_BOX[1] + lift)
            car_cells = torch.zeros_like(occupied)
            car_cells[where] = torch.from_numpy(inside.all(axis=-1))
        return build_light_table(occupied, self._to_sun, self._voxel_size, extra_opaque=car_cells)

    # -- picture -------------------------------------------------------------------------------

    def render(self, camera: Camera) -> NDArray[np.uint8]:
        """Draw the scene.

        Args:
            camera: in the ego frame.

        Returns:
            uint8 [H, W, 3] sRGB.
        """
        return self.render_rows(camera, 0, camera.height)

    def render_rows(self, camera: Camera, first: int, last: int) -> NDArray[np.uint8]:
        """Draw some rows of the picture; they do not depend on which others are drawn with them.

        Args:
            camera: in the ego frame.
            first: first row.
            last: one past the last row.

        Returns:
            uint8 [last - first, W, 3] sRGB.
        """
        # A row more on either side, to see the borders there.
        start, stop = max(first - 1, 0), min(last + 1, camera.height)
        height, width = stop - start, camera.width
        rows, columns = torch.meshgrid(
            torch.arange(start, stop, dtype=torch.float32) + 0.5,
            torch.arange(width, dtype=torch.float32) + 0.5,
            indexing="ij",
        )
        centres = torch.stack([columns.reshape(-1), rows.reshape(-1)], dim=1)
        coarse = self._sample(camera, centres)
        image = coarse.colour
        if self._style.smooth_edges:
            border = self._border_pixels(coarse, height, width).reshape(height, width)
            border[: first - start] = False
            border[height - (stop - last) :] = False
            again = border.reshape(-1).nonzero()[:, 0]
            if len(again):
                points = (centres[again, None, :] + _OFFSETS).reshape(-1, 2)
                more = self._sample(camera, points).colour.reshape(len(again), -1, 3)
                image[again] = (image[again] + more.sum(dim=1)) / (1 + len(_OFFSETS))
        pixels = (image.clamp(0, 1) * 255).round().to(torch.uint8).reshape(height, width, 3)
        return pixels[first - start : last - start].numpy()

    @staticmethod
    def _border_pixels(samples: _Samples, height: int, width: int) -> Tensor:
        """Pixels that show something else than a direct neighbour: bool [H * W]."""
        key = samples.key.reshape(height, width)
        plane = samples.plane.reshape(height, width)
        border = key >= _CAR
        across = (key[:, 1:] != key[:, :-1]) | (plane[:, 1:] != plane[:, :-1])
        border[:, 1:] |= across
        border[:, :-1] |= across
        down = (key[1:] != key[:-1]) | (plane[1:] != plane[:-1])
        border[1:] |= down
        border[:-1] |= down
        return border.reshape(-1)

    def _sample(self, camera: Camera, pixels: Tensor) -> _Samples:
        """Shade one ray per entry of ``pixels`` [N, 2]."""
        count = len(pixels)
        share = (pixels[:, 1:] / camera.height).clamp(0, 1)
        result = _Samples(
            colour=torch.lerp(self._sky_top, self._sky_bottom, share),
            key=torch.full((count,), _BACKGROUND),
            plane=torch.zeros(count, dtype=torch.int64),
            distance=torch.full((count,), math.inf),
        )
        self._draw_voxels(camera.transformed(self._ego2grid), pixels, result)
        if self._car is not None:
            index, colour, label, distance = self._car.draw(camera, pixels, result.distance)
            result.colour[index] = colour
            result.key[index] = _CAR + label
            result.distance[index] = distance
        return result

    def _draw_voxels(self, camera: Camera, pixels: Tensor, result: _Samples) -> None:
        directions = camera.directions(pixels)
        hits = ray_cast(
            self._pyramid,
            torch.from_numpy(camera.position)[None].float(),
            directions,
            self._grid_min,
            self._voxel_size,
            empty_label=_NOT_DRAWN,
        )
        voxel, distance = hits.voxel[0, 0], hits.t_enter[0, 0]
        hit, face = hits.hit[0, 0], hits.face[0, 0].long()
        # A ray that starts inside a voxel enters no face: take the one it looks through.
        main = directions.abs().argmax(dim=1)
        looking = 2 * main + (directions.gather(1, main[:, None])[:, 0] < 0).long()
        face = torch.where(face >= 0, face, looking)
        fog = _Fog(self._style.fog, camera.position, self._corners())
        for number in range(6):
            for index in _chunks(((face == number) & hit).nonzero()[:, 0]):
                cells = voxel[index].long()
                away = distance[index]
                label = self._labels[cells[:, 0], cells[:, 1], cells[:, 2]].long()
                shade = self._shade(camera, number, cells, away, directions[index], pixels[index])
                colour = self._albedo.index_select(0, label) * shade[:, None]
                sky = result.colour.index_select(0, index)
                result.colour[index] = torch.lerp(colour, sky, fog.share(away)[:, None])
                result.key[index] = label
                result.plane[index] = 8 * cells[:, number // 2] + number
                result.distance[index] = away

    def _shade(
        self,
        camera: Camera,
        face: int,
        voxel: Tensor,
        distance: Tensor,
        directions: Tensor,
        pixels: Tensor,
    ) -> Tensor:
        """Brightness [N] of points on faces of one orientation (a number as of the ray caster)."""
        axis, positive = face // 2, face % 2 == 1
        place = []
        for other in ((axis + 1) % 3, (axis + 2) % 3):
            start = (float(camera.position[other]) - self._grid_min[other]) / self._voxel_size[
                other
            ]
            run = distance * directions[:, other] / self._voxel_size[other]
            place.append((run + start - voxel[:, other]).clamp(0, 1))
        u, v = place
        light = self._light.look_up(axis, positive, voxel, u, v)
        # Relative to a horizontal face, which shall come out at one.
        cosine = (1 if positive else -1) * self._to_sun[axis] / self._to_sun[2]
        sun = (1.0 - self._style.ambient) * min(max(cosine, 0.0), 1.1)
        ambient = self._style.ambient * (1.0 if face == 5 else self._style.side_ambient)
        shade = sun * light[:, 0] + ambient * light[:, 1]
        return shade * self._edge_shade(camera, axis, u, v, distance, pixels)

    def _edge_shade(
        self, camera: Camera, axis: int, u: Tensor, v: Tensor, distance: Tensor, pixels: Tensor
    ) -> Tensor:
        """Brightness factor [N] of the lines along voxel edges.

        A line is as wide on screen wherever it lies, and disappears where voxels shrink to a few
        pixels (lines would then only make the surface darker and shimmer).
        """
        x = (pixels[:, 0] - 0.5 * camera.width) / camera.focal_px
        y = (pixels[:, 1] - 0.5 * camera.height) / camera.focal_px
        px_per_m = camera.focal_px * (x * x + y * y + 1.0).sqrt() / distance.clamp_min(1e-3)
        steps = []
        for other in ((axis + 1) % 3, (axis + 2) % 3):
            # d(pixel) for a step of one voxel along this axis of the grid.
            right, down, forward = camera.rotation[:, other] * self._voxel_size[other]
            steps.append(((right - x * forward) * px_per_m, (down - y * forward) * px_per_m))
        (ux, uy), (vx, vy) = steps
        area = (ux * vy - uy * vx).abs()
        # Extent of a voxel across its edges, in pixels.
        across_u = area / (vx * vx + vy * vy).sqrt().clamp_min(1e-6)
        across_v = area / (ux * ux + uy * uy).sqrt().clamp_min(1e-6)
        scale = max(camera.height / 600.0, 0.5)
        # A pixel is covered by as much of the line as lies within half a pixel of its middle.
        width = self._style.edge_width_px * scale
        reach, most = 0.5 * width + 0.5, min(width, 1.0)
        line = torch.zeros_like(u)
        for offset, extent in ((u, across_u), (v, across_v)):
            cover = (reach - torch.minimum(offset, 1 - offset) * extent).clamp(0, most)
            fade = ((extent / scale - 3.0) / 8.0).clamp(0, 1)
            line = torch.maximum(line, cover * fade)
        return 1.0 - self._style.edge_strength * line

    def _corners(self) -> NDArray[np.float64]:
        """The grid's eight corners [8, 3] in its own frame."""
        extent = np.asarray(self._labels.shape) * self._voxel_size
        return np.asarray(list(np.ndindex(2, 2, 2))) * extent + self._grid_min


class _Fog:
    """Blends distant parts into the background.

    It begins half-way through the scene and ends where the scene does. A camera that is far away
    from all of it (the top view) has everything at about one distance and gets no fog.
    """

    def __init__(
        self, strength: float, eye: NDArray[np.float64], corners: NDArray[np.float64]
    ) -> None:
        nearest = np.clip(eye, corners.min(axis=0), corners.max(axis=0))
        near = float(np.linalg.norm(nearest - eye))
        far = float(np.linalg.norm(corners - eye, axis=1).max())
        self._start = 0.5 * (near + far)
        self._length = max(far - self._start, 1.0)
        self._strength = strength * min(1.0, 2.0 * (far - near) / far)

    def share(self, distance: Tensor) -> Tensor:
        """Share of the background [N] at ``distance`` [N] metres."""
        depth = ((distance - self._start) / self._length).clamp(0, 1)
        return self._strength * depth * depth


def _chunks(index: Tensor) -> Iterator[Tensor]:
    for start in range(0, len(index), _CHUNK):
        yield index[start : start + _CHUNK]
