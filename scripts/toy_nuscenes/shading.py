"""Colours of ray hits: surfaces, sunlight and sky light, haze."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from scripts.toy_nuscenes.actors import Actor
from scripts.toy_nuscenes.arrays import f32
from scripts.toy_nuscenes.casting import Hits, What
from scripts.toy_nuscenes.facades import Building, shade_building
from scripts.toy_nuscenes.ground import Ground
from scripts.toy_nuscenes.light import Light, add_haze, add_skyline, sky_colour, sky_light
from scripts.toy_nuscenes.shadows import Shadows
from scripts.toy_nuscenes.statics import Kind, StaticWorld
from scripts.toy_nuscenes.surfaces import (
    Surface,
    shade_actors,
    shade_canopy,
    shade_ground,
    shade_plain,
)

_BOUNCE = f32([0.16, 0.15, 0.13])  # light reflected by the ground


def light_surface(surface: Surface, light: Light, shadows: Shadows) -> np.ndarray:
    """Return the radiance [n, 3] of a surface under sun, sky and ground."""
    normals = surface.normals
    direct = np.maximum(normals @ light.to_sun.astype(np.float32), 0)
    rows = np.flatnonzero(direct > 0.01)
    outside = surface.points if len(rows) == len(direct) else np.take(surface.points, rows, 0)
    if surface.bias:
        outside = outside + np.float32(surface.bias) * np.take(normals, rows, 0)
    direct[rows] *= shadows.sunlit(outside, 0.12 + 0.9 * surface.bias)
    upward = np.float32(0.5) + np.float32(0.5) * normals[:, 2]
    bounced = _BOUNCE * (light.sun + light.ambient)
    shares = np.stack([direct, upward * surface.open_sky, (1 - upward) * surface.open_sky])
    colour = f32(shares).T @ f32([light.sun, sky_light(light), bounced])
    colour *= surface.albedo
    if surface.glow is not None:
        colour += surface.glow
    return colour


@dataclass
class View:
    """Rays from one point at one moment, with their hits.

    hits: hits of the rays. origin: [3] in scene metres. directions: unit float32 [n, 3].
    points: float32 [n, 3], end points of the rays. pixel: angle of a pixel, radians.
    """

    hits: Hits
    origin: np.ndarray
    directions: np.ndarray
    points: np.ndarray
    pixel: float

    @classmethod
    def of(cls, hits: Hits, origin: np.ndarray, directions: np.ndarray, pixel: float) -> View:
        """Compute the end points of rays."""
        points = np.empty_like(directions)
        distance = np.minimum(hits.distance, np.float32(1e5))
        for axis in range(3):
            np.multiply(directions[:, axis], distance, out=points[:, axis])
            points[:, axis] += np.float32(origin[axis])
        return cls(hits, origin, directions, points, pixel)

    def points_at(self, rows: np.ndarray) -> np.ndarray:
        """Return the points [m, 3] of some rays."""
        return np.take(self.points, rows, 0)

    def directions_at(self, rows: np.ndarray) -> np.ndarray:
        """Return the directions [m, 3] of some rays."""
        return np.take(self.directions, rows, 0)


@dataclass
class Shader:
    """Shader of the ray hits in one scene."""

    ground: Ground
    world: StaticWorld
    actors: list[Actor]
    light: Light

    def colours(self, view: View, shadows: Shadows, yaws: dict[int, float]) -> np.ndarray:
        """Return the radiance float32 [n, 3] along the rays of a view.

        Args:
            view: rays and hits.
            shadows: shadows at this moment.
            yaws: heading of each visible actor, by index.
        """
        order, colours = [], []
        for rows, surface in self._surfaces(view, shadows, yaws):
            colour = light_surface(surface, self.light, shadows)
            add_haze(self.light, colour, view.hits.distance[rows])
            order.append(rows)
            colours.append(colour)
        rows = np.flatnonzero(view.hits.what == What.NOTHING)
        rays = view.directions_at(rows)
        sky = sky_colour(self.light, rays)
        add_skyline(self.light, rays, sky)
        where = np.empty(len(view.directions), np.int64)
        where[np.concatenate([*order, rows])] = np.arange(len(where))
        return np.take(np.concatenate([*colours, sky]), where, 0)

    def _surfaces(
        self, view: View, shadows: Shadows, yaws: dict[int, float]
    ) -> Iterator[tuple[np.ndarray, Surface]]:
        """Yield the hit surfaces, each with the indices of its rays."""
        hits = view.hits
        rows = np.flatnonzero(hits.what == What.GROUND)
        if len(rows):
            points, slope = view.points_at(rows), -np.take(view.directions[:, 2], rows)
            distance = hits.distance[rows]
            yield rows, shade_ground(self.ground, shadows, points, distance, slope, view.pixel)
        static = np.flatnonzero(hits.what == What.STATIC)
        kinds = self.world.slots.kind[hits.slot[static]]
        for kind in np.flatnonzero(np.bincount(kinds)):
            rows = static[kinds == kind]
            if kind == Kind.BUILDING:
                rows = rows[np.argsort(hits.slot[rows], kind="stable")]
                yield rows, self._buildings(view, rows)
            else:
                yield rows, self._static(view, rows, Kind(kind))
        rows = np.flatnonzero(hits.what == What.ACTOR)
        if len(rows):
            rows = rows[np.argsort(hits.actor[rows], kind="stable")]
            points, rays = view.points_at(rows), view.directions_at(rows)
            yield rows, shade_actors(self.actors, yaws, hits, rows, points, rays, self.light)

    def _static(self, view: View, rows: np.ndarray, kind: Kind) -> Surface:
        slots, faces = view.hits.slot[rows], np.maximum(view.hits.face[rows], 0)
        points = view.points_at(rows)
        if kind == Kind.CANOPY:
            return shade_canopy(self.world, slots, points, faces, view.hits.distance[rows])
        return shade_plain(self.world, kind, slots, points, faces)

    def _buildings(self, view: View, rows: np.ndarray) -> Surface:
        """Return all building hits; `rows` are sorted by slot."""
        slots = view.hits.slot[rows]
        parts = []
        for mine in np.split(rows, np.flatnonzero(np.diff(slots)) + 1):
            building = Building.of_slot(self.world.slots, int(view.hits.slot[mine[0]]))
            size = view.hits.distance[mine] * np.float32(view.pixel)
            points, rays = view.points_at(mine), view.directions_at(mine)
            face = view.hits.face[mine]
            part = shade_building(building, view.origin, rays, points, face, size, self.light)
            parts.append(part)
        columns = [np.concatenate(column) for column in zip(*parts, strict=True)]
        points, normals, albedo, open_sky, glow = columns
        return Surface(points, normals, albedo, open_sky, glow, bias=0.4)
