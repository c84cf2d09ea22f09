"""Ego vehicle: a small hatchback made of fine voxels, in the ego frame.

nuScenes' ego frame has its origin on the ground below the middle of the rear axle. The car is
modelled in this frame (x forward, y left, z up, metres), with the dimensions of the recording
cars, Renault Zoe: 4.08 m long, 1.73 m wide, 1.56 m high, wheelbase 2.59 m.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache
from itertools import product

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from models.ops import OccupancyPyramid, ray_cast
from scripts.visualization.camera import Camera
from scripts.visualization.palette import EGO_COLOUR, RGB
from scripts.visualization.surface import surface_faces

_VOXEL_M = 0.04
_MIN = (-0.76, -1.0, 0.0)
_SHAPE = (110, 50, 40)

_BODY, _GLASS, _TYRE, _HEADLIGHT, _TAILLIGHT, _TRIM, _EMPTY = range(7)
_COLOURS: dict[int, RGB] = {
    _BODY: EGO_COLOUR,
    _GLASS: (44, 58, 74),
    _TYRE: (34, 36, 40),
    _HEADLIGHT: (255, 246, 205),
    _TAILLIGHT: (206, 32, 38),
    _TRIM: (70, 76, 84),
}

_REAR, _FRONT = -0.64, 3.44
_HALF_WIDTH = 0.865
_WHEELS_X = (0.0, 2.59)
_WHEEL_RADIUS = 0.32
_BELT = 0.98
# Upper outline of body and cabin in side view: (x, z) from the rear bumper to the front one.
_OUTLINE = np.array(
    [
        (-0.64, 0.62), (-0.60, 1.00), (-0.46, 1.22), (-0.22, 1.47), (0.15, 1.56), (1.05, 1.56),
        (1.42, 1.49), (2.42, 1.00), (3.05, 0.88), (3.34, 0.72), (3.44, 0.50),
    ]
)  # fmt: skip


@dataclass(frozen=True)
class CarModel:
    """Voxels of the car.

    Attributes:
        labels: uint8 [X, Y, Z] parts of the car.
        pyramid: the labels, prepared for the ray caster.
        normals: float32 [3, X, Y, Z] outward unit normals of the smoothed shape.
        colours: float32 [parts, 3] in [0, 1].
    """

    labels: Tensor
    pyramid: OccupancyPyramid
    normals: Tensor
    colours: Tensor


def _centres() -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    axes = [low + (np.arange(n) + 0.5) * _VOXEL_M for low, n in zip(_MIN, _SHAPE, strict=True)]
    x, y, z = np.meshgrid(*axes, indexing="ij")
    return x, y, z


def _hull(x: NDArray[np.float64], y: NDArray[np.float64], z: NDArray[np.float64]) -> NDArray:
    """Return the closed body with cabin, without wheels: bool [X, Y, Z]."""
    top = np.interp(x, _OUTLINE[:, 0], _OUTLINE[:, 1], left=0.0, right=0.0)
    # Narrower towards bumpers (plan view), roof (tumblehome) and sill.
    along = np.abs((x - 0.5 * (_REAR + _FRONT)) / (0.5 * (_FRONT - _REAR)))
    half = _HALF_WIDTH * np.clip(1 - 0.16 * along**6, 0, 1)
    half = half - 0.36 * np.clip(z - _BELT, 0, None) - 0.25 * np.clip(0.38 - z, 0, None)
    # Lower the top near the flanks to round the shoulder edge.
    near_flank = np.clip(np.abs(y) / np.maximum(half, 1e-6), 0, 1)
    top = top - 0.10 * near_flank**8
    return (np.abs(y) <= half) & (z <= top) & (z >= 0.20) & (x >= _REAR) & (x <= _FRONT)


def _normals(solid: NDArray) -> Tensor:
    """Return the outward unit normals [3, X, Y, Z]: falling gradient of the blurred solid."""
    field = torch.from_numpy(solid.astype(np.float32))[None, None]
    for _ in range(3):
        field = F.avg_pool3d(field, 3, stride=1, padding=1)
    gradient = torch.stack(torch.gradient(field[0, 0]))
    length = gradient.norm(dim=0, keepdim=True).clamp_min(1e-6)
    return (-gradient / length).contiguous()


@lru_cache(maxsize=1)
def car_model() -> CarModel:
    """Build the car; the result is cached."""
    x, y, z = _centres()
    hull = _hull(x, y, z)
    labels = np.full(_SHAPE, _EMPTY, dtype=np.uint8)
    labels[hull] = _BODY
    labels[hull & (z < 0.34)] = _TRIM

    # Glass: the cabin's surface between belt and roof rails, interrupted by the pillars.
    glass_zone = hull & (z > _BELT + 0.03) & (z < 1.46)
    flank = np.abs(y) > _HALF_WIDTH - 0.36 * np.clip(z - _BELT, 0, None) - 0.07
    pillar = flank & ((np.abs(x - 0.98) < 0.05) | (x < 0.02) | (x > 2.05 - 1.25 * (z - 1.0)))
    labels[glass_zone & ~pillar] = _GLASS

    labels[hull & (x > 3.16) & (np.abs(y) > 0.46) & (np.abs(z - 0.68) < 0.07)] = _HEADLIGHT
    labels[hull & (x < -0.50) & (np.abs(y) > 0.50) & (np.abs(z - 0.90) < 0.09)] = _TAILLIGHT

    solid = hull.copy()
    for wheel_x in _WHEELS_X:
        radius = np.hypot(x - wheel_x, z - _WHEEL_RADIUS)
        outside = np.abs(y) > 0.60
        labels[outside & (radius < _WHEEL_RADIUS + 0.06) & (labels != _EMPTY)] = _EMPTY
        wheel = outside & (np.abs(y) < 0.85) & (radius < _WHEEL_RADIUS)
        labels[wheel] = _TYRE
        labels[wheel & (radius < 0.19) & (np.abs(y) > 0.8)] = _TRIM
        solid |= wheel

    parts = torch.from_numpy(labels)
    colours = torch.tensor([_COLOURS[i] for i in range(_EMPTY)]) / 255
    return CarModel(parts, OccupancyPyramid(parts[None], _EMPTY), _normals(solid), colours)


@dataclass(frozen=True)
class CarFaces:
    """Surface of the car for viewers that draw faces: ego frame, metres, on ground of height 0.

    Attributes:
        cells: int64 [F, 3] voxel of each face in the car's own grid.
        faces: uint8 [F] side of the voxel, see `scripts.visualization.surface.surface_faces`.
        labels: uint8 [F] parts of the car.
        normals: float32 [F, 3] unit normals of the smoothed shape.
        colours: uint8 [parts, 3].
        grid_min: lower corner of the car's grid.
        voxel_m: edge length of its voxels.
    """

    cells: NDArray[np.int64]
    faces: NDArray[np.uint8]
    labels: NDArray[np.uint8]
    normals: NDArray[np.float32]
    colours: NDArray[np.uint8]
    grid_min: tuple[float, float, float]
    voxel_m: float


def car_faces() -> CarFaces:
    """Return the car's surface without its underside, which is never visible."""
    car = car_model()
    labels, normals = car.labels.numpy(), car.normals.numpy()
    cells, faces = surface_faces(labels != _EMPTY)
    seen = faces != 4
    cells, faces = cells[seen], faces[seen]
    x, y, z = cells.T
    colours = np.asarray([_COLOURS[part] for part in range(_EMPTY)], dtype=np.uint8)
    parts, facing = labels[x, y, z], normals[:, x, y, z].T
    return CarFaces(cells, faces, parts, facing, colours, _MIN, _VOXEL_M)


class EgoCar:
    """Car in a scene.

    Args:
        ground_m: height of the ground below the car, ego frame.
        to_sun: direction towards the sun, ego frame.
    """

    def __init__(self, ground_m: float, to_sun: tuple[float, float, float]) -> None:
        self.ground_m = ground_m
        self._to_sun = F.normalize(torch.tensor(to_sun), dim=0)

    def draw(
        self, camera: Camera, pixels: Tensor, nearest: Tensor
    ) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        """Shade the rays that hit the car.

        Args:
            camera: in the ego frame.
            pixels: float32 [H, W, 2] column and row of a part of the raster.
            nearest: float32 [H, W] distance of the nearest other surface on each ray.

        Returns:
            int64 [n] and [n] rows and columns of the rays that hit the car, float32 [n, 3] their
            colours, int64 [n] the part hit and float32 [n] its distance in metres.
        """
        low = np.asarray(_MIN) + np.array([0.0, 0.0, self.ground_m])
        extent = np.asarray(_SHAPE) * _VOXEL_M
        top, left, bottom, right = _rows_and_columns(camera, low, low + extent, pixels)
        looked_at = pixels[top:bottom, left:right]
        if not looked_at.numel():
            none = torch.zeros(0)
            return none.long(), none.long(), none.view(0, 3), none.long(), none
        directions = camera.directions(looked_at.reshape(-1, 2))
        origin = torch.from_numpy(camera.position).float()
        grid_min = (float(low[0]), float(low[1]), float(low[2]))
        car = car_model()
        hits = ray_cast(
            car.pyramid, origin[None], directions, grid_min, (_VOXEL_M,) * 3, empty_label=_EMPTY
        )
        distance = hits.t_enter[0, 0]
        free = distance < nearest[top:bottom, left:right].reshape(-1)
        seen = (hits.hit[0, 0] & free).nonzero()[:, 0]
        directions, distance = directions[seen], distance[seen]
        voxel = hits.voxel[0, 0][seen].long()
        label = car.labels[voxel[:, 0], voxel[:, 1], voxel[:, 2]].long()
        points = origin + distance[:, None] * directions
        place = (points - torch.tensor(grid_min)) / torch.from_numpy(extent).float() * 2 - 1
        colour = self._shade(car, label, place, directions)
        row = top + seen.div(right - left, rounding_mode="floor")
        return row, left + seen % (right - left), colour, label, distance

    def _shade(self, car: CarModel, label: Tensor, place: Tensor, directions: Tensor) -> Tensor:
        """Shade paint, glass and tyres: diffuse light and a soft highlight.

        Args:
            car: the model.
            label: int64 [n] part.
            place: float32 [n, 3] position in the model's box, each in [-1, 1].
            directions: float32 [n, 3] unit viewing directions.

        Returns:
            float32 [n, 3] colours.
        """
        normals = F.grid_sample(
            car.normals.permute(0, 3, 2, 1)[None],
            place[None, None, None],
            align_corners=False,
            padding_mode="border",
        )[0, :, 0, 0].T
        normals = F.normalize(normals, dim=1)
        diffuse = (normals @ self._to_sun).clamp_min(0.0)
        shade = 0.52 + 0.12 * normals[:, 2] + 0.40 * diffuse
        half = F.normalize(self._to_sun - directions, dim=1)
        gloss = (normals * half).sum(dim=1).clamp_min(0.0) ** 40
        return car.colours[label] * shade[:, None] + 0.35 * gloss[:, None]


def _rows_and_columns(
    camera: Camera, low: NDArray[np.float64], high: NDArray[np.float64], pixels: Tensor
) -> tuple[int, int, int, int]:
    """Return the range of pixels [H, W, 2] that may show a box of the ego frame.

    Returns:
        First row and column, and one past the last row and column. The range is empty if the box
        reaches behind the camera.
    """
    corners, depth = camera.project(np.array(list(product(*zip(low, high, strict=True)))))
    if not (depth > 0).all() or not pixels.numel():
        return 0, 0, 0, 0
    (left, top), (right, bottom) = corners.min(axis=0) - 1, corners.max(axis=0) + 1
    height, width = pixels.shape[:2]
    x, y = pixels[0, 0].tolist()
    return (
        min(max(math.ceil(top - y), 0), height),
        min(max(math.ceil(left - x), 0), width),
        min(max(math.floor(bottom - y) + 1, 0), height),
        min(max(math.floor(right - x) + 1, 0), width),
    )
