"""Complete scene: plan, ground, static world, actors, light and shadows."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from scripts.toy_nuscenes.actors import Actor
from scripts.toy_nuscenes.casting import Hits, ImageFrame, PosedActor, cast, pose_actor
from scripts.toy_nuscenes.ground import Ground, paint_ground
from scripts.toy_nuscenes.layout import Layout, make_layout
from scripts.toy_nuscenes.light import Light, make_light
from scripts.toy_nuscenes.placing import place_actors
from scripts.toy_nuscenes.recipes import make_recipe
from scripts.toy_nuscenes.rig import yaw_rotation
from scripts.toy_nuscenes.scenery import build_statics
from scripts.toy_nuscenes.shading import Shader
from scripts.toy_nuscenes.shadows import Shadows
from scripts.toy_nuscenes.statics import StaticWorld

SIGHT_M = 85.0
"""Actors further away from the ego vehicle than this are neither drawn nor labelled."""

SHADOW_SIGHT_M = 32.0


@dataclass(frozen=True)
class EgoPose:
    """Pose of the ego vehicle: column vectors transform as `rotation @ p + translation`."""

    translation: np.ndarray
    rotation: np.ndarray
    yaw: float


@dataclass(frozen=True)
class Scene:
    """Generated world."""

    index: int
    duration_s: float
    layout: Layout
    ground: Ground
    world: StaticWorld
    actors: list[Actor]
    light: Light
    shadows: Shadows
    still: list[PosedActor]  # the actors that never move

    @cached_property
    def moving(self) -> list[int]:
        """Indices of the actors that move and come near the ego vehicle."""
        times = np.arange(-0.1, self.duration_s + 0.4, 0.4)
        ego = np.array([self.layout.ego.pose(float(t))[:2] for t in times])
        out = []
        for index, actor in enumerate(self.actors):
            if actor.motion.moves:
                track = np.array([actor.motion.pose(float(t))[:2] for t in times])
                if np.hypot(*(track - ego).T).min() < SIGHT_M + 10.0:
                    out.append(index)
        return out

    @cached_property
    def still_places(self) -> np.ndarray:
        """Positions [n, 2] of the actors that do not move."""
        return np.array([p.position[:2] for p in self.still]).reshape(-1, 2)

    @property
    def shader(self) -> Shader:
        """The shader of this scene."""
        return Shader(self.ground, self.world, self.actors, self.light)

    def ego(self, time_s: float) -> EgoPose:
        """Return the pose of the ego vehicle at a time in seconds."""
        x, y, yaw = self.layout.ego.pose(time_s)
        return EgoPose(np.array([x, y, 0.0]), yaw_rotation(yaw), yaw)

    def posed(self, time_s: float) -> list[PosedActor]:
        """Return the actors near the ego vehicle at a time."""
        x, y, _ = self.layout.ego.pose(time_s)
        near = []
        for index in self.moving:
            pose = self.actors[index].motion.pose(time_s)
            if math.hypot(pose[0] - x, pose[1] - y) < SIGHT_M:
                near.append(pose_actor(index, self.actors[index], pose))
        gaps = np.hypot(self.still_places[:, 0] - x, self.still_places[:, 1] - y)
        near += [self.still[k] for k in np.flatnonzero(gaps < SIGHT_M)]
        return sorted(near, key=lambda p: p.index)

    def shadows_at(self, time_s: float, posed: list[PosedActor], frame: ImageFrame) -> Shadows:
        """Return the shadows, including those of near moving actors that an image may show.

        Args:
            time_s: time in seconds.
            posed: the actors at that time.
            frame: frame of the image.
        """
        here, forward = self.ego(time_s).translation, frame.rotation[:2, 2]
        moving = [
            p
            for p in posed
            if p.actor.motion.moves
            and math.hypot(p.position[0] - here[0], p.position[1] - here[1]) < SHADOW_SIGHT_M
            and (p.position - here)[:2] @ forward > -p.radius - 3.0
            and frame.may_see(p.position[:2], self.shadows.reach(p))
        ]
        return self.shadows.with_actors(moving)

    def cast(
        self,
        posed: list[PosedActor],
        origin: np.ndarray,
        directions: np.ndarray,
        image: ImageFrame | None = None,
        count_free: bool = False,
    ) -> Hits:
        """Cast rays from `origin` [3] along unit `directions` [n, 3]; see `casting.cast`."""
        return cast(self.world, posed, len(self.actors), origin, directions, image, count_free)


def make_scene(seed: int, index: int, duration_s: float) -> Scene:
    """Generate scene number `index`; the same arguments result in the same scene."""
    recipe = make_recipe(seed, index)
    layout = make_layout(recipe, duration_s)
    ground = paint_ground(layout)
    world, _ = build_statics(layout, ground)
    actors = place_actors(layout, ground, world, duration_s)
    light = make_light(recipe.light, recipe.seed)
    still = [
        pose_actor(k, actor, actor.motion.pose(0.0))
        for k, actor in enumerate(actors)
        if not actor.motion.moves
    ]
    shadows = Shadows.of_world(world, layout.upper, light).with_actors(still)
    return Scene(index, duration_s, layout, ground, world, actors, light, shadows, still)
