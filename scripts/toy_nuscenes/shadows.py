"""Sun shadows and contact darkening, as rasters over the ground plane.

The shadow raster H(g) holds the height of the highest surface on the sun ray through ground point
g. A point at height z on that ray is in shadow exactly if H(g) > z. One raster therefore serves the
ground and everything above it.
"""

from __future__ import annotations

import cv2
import numpy as np
import torch

from models.ops import ray_cast
from scripts.toy_nuscenes.arrays import f32
from scripts.toy_nuscenes.casting import PosedActor
from scripts.toy_nuscenes.ground import Canvas
from scripts.toy_nuscenes.light import Light
from scripts.toy_nuscenes.statics import EMPTY, HEIGHT_M, VOXEL_M, StaticWorld

RESOLUTION_M = 0.2
_BIAS_M = 0.25


class Shadows:
    """Shadow heights and contact darkening, both float32 [rows, columns] (1: open sky)."""

    def __init__(
        self, canvas: Canvas, light: Light, height: np.ndarray, open_sky: np.ndarray
    ) -> None:
        """Store the rasters of the class; `canvas` has `RESOLUTION_M` cells."""
        self.canvas, self.light, self.height, self.open_sky = canvas, light, height, open_sky
        sun = light.to_sun
        self.slope = (sun[:2] / sun[2]).astype(np.float32)

    @classmethod
    def of_world(cls, world: StaticWorld, upper: np.ndarray, light: Light) -> Shadows:
        """Return the shadows of the static world; `upper` [2] is its upper corner."""
        canvas = Canvas(world.lower, upper, RESOLUTION_M)
        x, y = canvas.centres()
        slope = light.to_sun[:2] / light.to_sun[2]
        top = np.stack(
            [
                x.ravel() + slope[0] * HEIGHT_M,
                y.ravel() + slope[1] * HEIGHT_M,
                np.full(x.size, HEIGHT_M),
            ],
            -1,
        )
        down = torch.tensor(-light.to_sun[None], dtype=torch.float32)
        hits = ray_cast(
            world.pyramid,
            torch.from_numpy(top.astype(np.float32)),
            down,
            world.corner,
            (VOXEL_M,) * 3,
            EMPTY,
        )
        height = HEIGHT_M - hits.t_enter[0, :, 0].numpy() * np.float32(light.to_sun[2])
        height = (
            np.where(hits.hit[0, :, 0].numpy(), height, -1.0).reshape(x.shape).astype(np.float32)
        )
        low = world.grid[:, :, :10].any(2).T.astype(np.float32)
        over = (world.grid[:, :, 10:].any(2).T).astype(np.float32)
        near, wide = cv2.blur(low, (7, 7)), cv2.blur(np.maximum(low, over), (31, 31))
        return cls(canvas, light, height, 1 - 0.45 * near - 0.35 * wide)

    def reach(self, posed: PosedActor) -> float:
        """Return the maximum distance in metres from an actor to surface points that it may darken.

        `sunlit` is called with points up to 0.7 m off the surfaces.
        """
        steep = float(np.hypot(*self.slope))
        return posed.radius + steep * (posed.actor.model.size[2] + 0.1) + 2.0

    def with_actors(self, actors: list[PosedActor]) -> Shadows:
        """Return a copy with the shadows of actors added."""
        if not actors:
            return self
        out = Shadows(self.canvas, self.light, self.height.copy(), self.open_sky.copy())
        for posed in actors:
            out._add(posed)
        return out

    def _add(self, posed: PosedActor) -> None:
        """Cast sun rays through the cells that the actor may shade."""
        model, sun = posed.actor.model, self.light.to_sun
        length, width, tall = model.size
        corners = np.array(
            [(a, b) for a in (-length / 2, length / 2) for b in (-width / 2, width / 2)]
        )
        foot = corners @ posed.rotation[:2, :2].T + posed.position[:2]
        reach = np.concatenate([foot, foot - self.slope * tall])
        rows, columns = self.canvas.shape
        pixels = self.canvas.pixels(reach)
        low = np.clip(np.floor(pixels.min(0)).astype(int) - 3, 0, (columns, rows))
        high = np.clip(np.ceil(pixels.max(0)).astype(int) + 4, 0, (columns, rows))
        if (high <= low).any():
            return
        part = (slice(low[1], high[1]), slice(low[0], high[0]))
        top = tall + 0.1
        offset = self.canvas.lower + self.slope * top - posed.position[:2]
        x = f32(offset[0] + (np.arange(low[0], high[0]) + 0.5) * RESOLUTION_M)
        y = f32(offset[1] + (np.arange(low[1], high[1]) + 0.5) * RESOLUTION_M)[:, None]
        turn = f32(posed.rotation)
        points = np.empty((len(y), len(x), 3), np.float32)
        for axis in range(3):
            points[..., axis] = x * turn[0, axis] + (y * turn[1, axis] + top * turn[2, axis])
        local = torch.from_numpy(points.reshape(-1, 3))
        down = torch.from_numpy((-sun @ posed.rotation).astype(np.float32)[None])
        mask = np.zeros(points.shape[:2], np.float32)
        hits = ray_cast(model.pyramid, local, down, model.corner, model.voxel, 0)
        height = np.where(
            hits.hit[0, :, 0].numpy(),
            top - hits.t_enter[0, :, 0].numpy() * np.float32(sun[2]),
            -1.0,
        )
        np.maximum(self.height[part], height.reshape(mask.shape), out=self.height[part])
        cv2.fillPoly(
            mask,
            [np.round(self.canvas.pixels(foot) - low).astype(np.int32)[[0, 1, 3, 2], None]],
            1.0,
        )
        self.open_sky[part] *= 1 - 0.6 * cv2.blur(mask, (5, 5))

    def sunlit(self, points: np.ndarray, bias: float = _BIAS_M) -> np.ndarray:
        """Return the share float32 [n] of sunlight that reaches points float32 [n, 3]."""
        z = points[:, 2]
        u = (
            points[:, 0] - self.slope[0] * z - np.float32(self.canvas.lower[0])
        ) / RESOLUTION_M - 0.5
        v = (
            points[:, 1] - self.slope[1] * z - np.float32(self.canvas.lower[1])
        ) / RESOLUTION_M - 0.5
        rows, columns = self.canvas.shape
        column, row = np.floor(u).astype(np.int32), np.floor(v).astype(np.int32)
        outside = (column < 0) | (row < 0) | (column >= columns - 1) | (row >= rows - 1)
        index = np.clip(row, 0, rows - 2) * columns + np.clip(column, 0, columns - 2)
        flat, level = self.height.reshape(-1), z + np.float32(bias)
        near, right, low, far = (
            np.take(flat, index + step) < level for step in (0, 1, columns, columns + 1)
        )
        full = near & right & low & far
        lit = full.astype(np.float32)
        # Between lit and shaded cells, compute the share of the lit ones.
        mixed = np.flatnonzero((near | right | low | far) & ~full)
        fu, fv = u[mixed] - column[mixed], v[mixed] - row[mixed]
        share = near[mixed] * (1 - fu) * (1 - fv) + right[mixed] * fu * (1 - fv)
        share += low[mixed] * (1 - fu) * fv + far[mixed] * fu * fv
        lit[mixed] = share
        lit[outside] = 1.0
        return lit
