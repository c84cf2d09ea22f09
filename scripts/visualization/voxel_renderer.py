"""Shaded pictures of a voxel grid: one native ray per pixel, and more at edges for smoothing.

Rays are cast and shaded by `models.ops.voxel_shading`, with light that `models.ops.voxel_light`
computes once per grid. Light, voxel edges and fog are evaluated analytically at the hit point, so
one sample per pixel is enough inside a surface. Only pixels on a silhouette or a colour border are
sampled again.

Dimension letters: X, Y, Z voxels; H, W image.
Frames: cameras are given in the ego frame and transformed to the grid's ("occ") frame.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from models.ops import OccupancyPyramid, VoxelScene, VoxelView, voxel_light, voxel_shading
from scripts.visualization.camera import Camera
from scripts.visualization.ego_car import EgoCar
from scripts.visualization.palette import Theme

_NOT_DRAWN = 255
_CAR = 1 << 30
# Part of the ego frame that the car occupies, [low, high] in metres above the ground.
_EGO_BOX = np.array([[-0.64, -0.87, 0.05], [3.44, 0.87, 1.53]])


@dataclass(frozen=True)
class RenderStyle:
    """Lighting and lines of a scene.

    Attributes:
        to_sun: direction towards the sun, ego frame. Behind the chase camera's left shoulder.
        ambient: share of ambient light on an unshaded horizontal face; the sun adds the rest, so
            such a face has exactly its class colour.
        side_ambient: ambient light of vertical faces relative to horizontal ones.
        occlusion: darkness of the crease between two faces.
        edge_strength: darkening at voxel edges.
        edge_width_px: width of voxel edges in pixels of a 600-pixel-high image.
        fog: share of the background in the colour at the far end of the scene.
        smooth_edges: whether to sample silhouettes again.
    """

    to_sun: tuple[float, float, float] = (-0.66, 0.56, 1.05)
    ambient: float = 0.60
    side_ambient: float = 0.90
    occlusion: float = 0.72
    edge_strength: float = 0.26
    edge_width_px: float = 1.0
    fog: float = 0.42
    smooth_edges: bool = True


@dataclass
class _Samples:
    """Shaded rays.

    Attributes:
        colour: float32 [H, W, 4], see `VoxelRenderer._draw_rows`.
        key: int32 [H, W] label and plane combined in one number; negative for the background, at
            least `_CAR` on the ego car.
    """

    colour: Tensor
    key: Tensor


class VoxelRenderer:
    """Draw one label grid from any number of cameras.

    Args:
        labels: uint8 [X, Y, Z] class of each voxel.
        grid_min: lower corner of the grid in metres.
        voxel_size: edge lengths of a voxel in metres.
        empty_label: label of free space.
        colours: uint8 [C, 3] colour of each label below C; labels from C on are not drawn.
        theme: colours of the background.
        ego2grid: [4, 4] from the ego frame to the grid's frame; identity for Occ3D.
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
        # The ray caster has one free label, so all labels that are not drawn are replaced by one.
        self._labels = torch.where(occupied, grid, torch.full_like(grid, _NOT_DRAWN)).contiguous()
        self._pyramid = OccupancyPyramid(self._labels[None], _NOT_DRAWN)
        self._grid_min = (float(grid_min[0]), float(grid_min[1]), float(grid_min[2]))
        self._voxel_size = (float(voxel_size[0]), float(voxel_size[1]), float(voxel_size[2]))
        extent = np.asarray(grid.shape) * self._voxel_size
        # The grid's eight corners [8, 3] in its own frame.
        self._corners = np.asarray(list(np.ndindex(2, 2, 2))) * extent + self._grid_min
        # On black, shading and lines would be invisible; lighten it a little.
        self._albedo = 0.07 + 0.93 * torch.from_numpy(colours.astype(np.float32)) / 255
        self._sky_top = torch.tensor(theme.sky_top) / 255
        self._sky_bottom = torch.tensor(theme.sky_bottom) / 255
        self._style = style or RenderStyle()
        self._ego2grid = np.eye(4) if ego2grid is None else np.asarray(ego2grid, dtype=np.float64)
        sun = self._ego2grid[:3, :3] @ np.asarray(self._style.to_sun)
        sun /= np.linalg.norm(sun)
        self._to_sun = (float(sun[0]), float(sun[1]), max(float(sun[2]), 0.2))
        self._car = EgoCar(self._ground_height(), self._style.to_sun) if show_ego else None
        self._scene = self._light_scene(occupied)

    # -- scene ---------------------------------------------------------------------------------

    def _cells_in_box(
        self, low: NDArray[np.float64], high: NDArray[np.float64]
    ) -> tuple[tuple[slice, slice, slice], NDArray[np.float64]]:
        """Return the cells around a box of the ego frame.

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
        """Return the height of the drawn ground under the ego vehicle (ego frame, metres).

        The wheels must stand on the upper faces of the road's voxels, which may be up to a voxel
        above the true road.
        """
        low = np.array([_EGO_BOX[0, 0], _EGO_BOX[0, 1], -0.7])
        high = np.array([_EGO_BOX[1, 0], _EGO_BOX[1, 1], 0.7])
        where, cells = self._cells_in_box(low, high)
        filled = (self._labels[where].numpy() != _NOT_DRAWN) & (np.abs(cells[..., 2]) < 0.7)
        if not filled.any():
            return 0.0
        tops = np.where(filled, cells[..., 2], -np.inf).max(axis=2)
        return float(np.median(tops[np.isfinite(tops)]) + 0.5 * self._voxel_size[2])

    def _light_scene(self, occupied: Tensor) -> VoxelScene:
        opaque = occupied
        if self._car is not None:
            lift = np.array([0.0, 0.0, self._car.ground_m])
            where, cells = self._cells_in_box(_EGO_BOX[0] + lift, _EGO_BOX[1] + lift)
            inside = (cells >= _EGO_BOX[0] + lift) & (cells <= _EGO_BOX[1] + lift)
            opaque = occupied.clone()
            opaque[where] |= torch.from_numpy(inside.all(axis=-1))
        x, y, z = self._to_sun
        layer = self._voxel_size[2] / z
        slope = (x * layer / self._voxel_size[0], y * layer / self._voxel_size[1])
        return VoxelScene(
            self._pyramid,
            voxel_light(occupied, opaque, slope),
            self._albedo,
            [self._brightness(face) for face in range(6)],
            self._style.occlusion,
            self._grid_min,
            self._voxel_size,
        )

    def _brightness(self, face: int) -> tuple[float, float]:
        """Return sunlight and ambient light on an unshaded face (numbered as in the ray caster)."""
        axis, positive = face // 2, face % 2 == 1
        # Relative to a horizontal face, which must get one.
        cosine = (1 if positive else -1) * self._to_sun[axis] / self._to_sun[2]
        sun = (1.0 - self._style.ambient) * min(max(cosine, 0.0), 1.1)
        return sun, self._style.ambient * (1.0 if face == 5 else self._style.side_ambient)

    # -- picture -------------------------------------------------------------------------------

    def render(self, camera: Camera) -> NDArray[np.uint8]:
        """Draw the scene.

        Args:
            camera: in the ego frame.

        Returns:
            uint8 [H, W, 3] sRGB.
        """
        return self.render_rows(camera, 0, camera.height)

    def render_over(
        self, camera: Camera, image: NDArray[np.uint8], opacity: float
    ) -> NDArray[np.uint8]:
        """Draw the voxels half transparent over a camera image.

        Args:
            camera: the camera of the image, in the ego frame.
            image: uint8 [H, W, 3] sRGB of the camera's size.
            opacity: opacity of the voxels, in [0, 1].

        Returns:
            uint8 [H, W, 3] sRGB.
        """
        drawn = self._draw_rows(camera, 0, camera.height, over=True)
        cover = opacity * drawn[..., 3:]
        mixed = opacity * drawn[..., :3] + (1 - cover) * (torch.from_numpy(image.copy()) / 255)
        return _eight_bits(mixed)

    def render_rows(self, camera: Camera, first: int, last: int) -> NDArray[np.uint8]:
        """Draw some rows of the picture; the result does not depend on other rows.

        Args:
            camera: in the ego frame.
            first: first row.
            last: one past the last row.

        Returns:
            uint8 [last - first, W, 3] sRGB.
        """
        return _eight_bits(self._draw_rows(camera, first, last, over=False)[..., :3])

    def _draw_rows(self, camera: Camera, first: int, last: int, over: bool) -> Tensor:
        """Return rows of the picture with smooth borders: float32 [rows, W, 4].

        With `over`, only voxels are drawn, without car, fog and background. Their colour is
        premultiplied by their coverage of the pixel, which is the fourth channel.
        """
        # One more row on either side, to detect borders there.
        start, stop = max(first - 1, 0), min(last + 1, camera.height)
        view = self._view(camera.transformed(self._ego2grid), 0.0 if over else self._style.fog)
        coarse = self._sample(camera, view, *_rays(camera, start, stop, 0.5), None, over)
        image = coarse.colour
        if self._style.smooth_edges:
            border = self._border_pixels(coarse.key)
            border[: first - start] = False
            border[len(border) - (stop - last) :] = False
            image = self._smoothed(image, border, camera, view, start, over)
        return image[first - start : last - start]

    def _smoothed(
        self, image: Tensor, border: Tensor, camera: Camera, view: VoxelView, start: int, over: bool
    ) -> Tensor:
        """Return the picture with border pixels supersampled at their corners.

        Adjacent pixels share corners, so this needs little more than one ray per pixel instead of
        four. Weights in a pixel: an eighth for each corner, a half for the centre.

        Args:
            image: float32 [H, W, 4] rows of the picture.
            border: bool [H, W].
            camera: in the ego frame.
            view: view of that camera.
            start: index of the first row in the picture.
            over: see `_draw_rows`.
        """
        rows, width = border.shape
        needed = torch.zeros(rows + 1, width + 1, dtype=torch.bool)
        for down in (0, 1):
            for right in (0, 1):
                needed[down : rows + down, right : width + right] |= border
        rays = _rays(camera, start, start + rows + 1, 0.0)
        corners = self._sample(camera, view, *rays, needed, over).colour
        across = corners[:, 1:] + corners[:, :-1]
        around = across[1:] + across[:-1]
        # Half of the centre and an eighth of each corner, without selecting pixels.
        share = 0.125 * border[..., None].float()
        return torch.addcmul(image, share, torch.sub(around, image, alpha=4))

    @staticmethod
    def _border_pixels(key: Tensor) -> Tensor:
        """Return the pixels that differ from a direct neighbour: bool [H, W]."""
        border = key >= _CAR
        across = key[:, 1:] != key[:, :-1]
        border[:, 1:] |= across
        border[:, :-1] |= across
        down = key[1:] != key[:-1]
        border[1:] |= down
        border[:-1] |= down
        return border

    def _sample(
        self,
        camera: Camera,
        view: VoxelView,
        pixels: Tensor,
        local: Tensor,
        wanted: Tensor | None,
        over: bool,
    ) -> _Samples:
        """Shade one ray per entry of `pixels` [H, W, 2]; see `_draw_rows`.

        `local` [H, W, 3] are their unit directions in the camera's own axes. Where `wanted` [H, W]
        is given and false, the result is undefined.
        """
        share = (pixels[:, 0, 1:] / camera.height).clamp(0, 1)
        sky = torch.lerp(self._sky_top, self._sky_bottom, share)
        sky = torch.zeros_like(sky) if over else sky
        colour, key, distance = voxel_shading(self._scene, view, local, sky, wanted)
        if self._car is not None and not over:
            row, column, paint, part, _ = self._car.draw(camera, pixels, distance)
            colour[row, column, :3] = paint
            key[row, column] = (_CAR + part).int()
        return _Samples(colour, key)

    def _view(self, camera: Camera, fog: float) -> VoxelView:
        """Return the parameters of a camera in the grid's frame for shading."""
        edges = (
            self._style.edge_strength,
            self._style.edge_width_px,
            max(camera.height / 600.0, 0.5),
        )
        return VoxelView(
            camera.position.tolist(),
            camera.rotation.tolist(),
            camera.focal_px,
            edges,
            _fog_span(fog, camera.position, self._corners),
        )


def _eight_bits(image: Tensor) -> NDArray[np.uint8]:
    """Convert [0, 1] to 0..255."""
    pixels: NDArray[np.uint8] = (image.clamp(0, 1) * 255).round().to(torch.uint8).numpy()
    return pixels


def _rays(camera: Camera, first: int, last: int, offset: float) -> tuple[Tensor, Tensor]:
    """Return the pixels [H, W, 2] of some rows and their unit directions [H, W, 3] (camera axes).

    Args:
        camera: camera of the image.
        first: first row.
        last: one past the last row.
        offset: 0.5 for the centres of the pixels; 0 for their corners, with one more per row.
    """
    return _kept_rays(_Lens(camera), first, last, offset)


class _Lens:
    """Properties of a camera that its rays depend on, except its pose; the key of a cache."""

    def __init__(self, camera: Camera) -> None:
        self.camera = camera
        c = camera
        self._key = (c.focal_px, c.aspect, c.centre, c.width, c.height)

    def __hash__(self) -> int:
        return hash(self._key)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Lens) and self._key == other._key


# The panels of a sheet and the pictures of a film share these properties.
@lru_cache(maxsize=16)
def _kept_rays(lens: _Lens, first: int, last: int, offset: float) -> tuple[Tensor, Tensor]:
    rows, columns = torch.meshgrid(
        torch.arange(first, last, dtype=torch.float32) + offset,
        torch.arange(lens.camera.width + (offset == 0), dtype=torch.float32) + offset,
        indexing="ij",
    )
    pixels = torch.stack([columns, rows], dim=2)
    local = lens.camera.local_directions(pixels.view(-1, 2))
    return pixels, local.view(*rows.shape, 3)


def _fog_span(
    strength: float, eye: NDArray[np.float64], corners: NDArray[np.float64]
) -> tuple[float, float, float]:
    """Return the strength of the fog, its start, and its length to the maximum, in metres.

    It starts halfway through the scene and ends at the end of the scene. A camera far away from the
    whole scene (the top view) gets no fog, since everything is at about the same distance.
    """
    nearest = np.clip(eye, corners.min(axis=0), corners.max(axis=0))
    near = float(np.linalg.norm(nearest - eye))
    far = float(np.linalg.norm(corners - eye, axis=1).max())
    start = 0.5 * (near + far)
    return strength * min(1.0, 2.0 * (far - near) / far), start, max(far - start, 1.0)
