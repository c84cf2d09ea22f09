"""Boxes of the actors at the key frames: LiDAR points inside, visibility, attributes."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from scripts.toy_nuscenes.rig import LIDAR_TRANSLATION, lidar_rotation
from scripts.toy_nuscenes.scene import Scene

ANNOTATION_RANGE_M = 60.0


@dataclass(frozen=True)
class BoxRecord:
    """Box of an actor at a key frame, in scene coordinates."""

    actor: int
    sample: int
    centre: tuple[float, float, float]
    size_wlh: tuple[float, float, float]
    yaw: float
    num_lidar_pts: int
    visibility: str
    attribute: str | None


def _points_inside(
    points: np.ndarray, centre: np.ndarray, rotation: np.ndarray, size: tuple[float, ...]
) -> int:
    """Return the number of points [3, n] inside a box."""
    reach = np.hypot(size[0], size[1]) / 2 + 0.01
    near = (np.abs(points[0] - centre[0]) < reach) & (np.abs(points[1] - centre[1]) < reach)
    local = (points[:, near].T - centre) @ rotation
    return int((np.abs(local) <= np.asarray(size) / 2).all(1).sum())


def _visibility(seen: int, free: int) -> str:
    share = seen / max(free, 1)
    return "1" if share <= 0.4 else "2" if share <= 0.6 else "3" if share <= 0.8 else "4"


def annotate(
    scene: Scene,
    times_s: list[float],
    lidar_points: list[np.ndarray],
    free: np.ndarray,
    seen: np.ndarray,
) -> list[BoxRecord]:
    """Return the boxes of all key frames of a scene.

    An actor is annotated from the first to the last key frame in which a sensor sees it within
    60 m.

    Args:
        scene: the world.
        times_s: times of the key frames.
        lidar_points: per key frame the points float32 [n, 5] in the LiDAR frame.
        free: [samples, actors], camera rays that would hit the actor without occlusion.
        seen: [samples, actors], camera rays that hit it.
    """
    counts = np.zeros(free.shape, int)
    near = np.zeros(free.shape, bool)
    poses: dict[tuple[int, int], tuple[np.ndarray, float]] = {}
    for k, time_s in enumerate(times_s):
        ego = scene.ego(time_s)
        origin = ego.rotation @ np.array(LIDAR_TRANSLATION) + ego.translation
        turn = ego.rotation @ lidar_rotation()
        points = turn @ lidar_points[k][:, :3].T + origin[:, None]
        for posed in scene.posed(time_s):
            counts[k, posed.index] = _points_inside(
                points, posed.centre, posed.rotation, posed.actor.model.size
            )
            near[k, posed.index] = (
                np.hypot(*(posed.position - ego.translation)[:2]) < ANNOTATION_RANGE_M
            )
            poses[k, posed.index] = (posed.centre, posed.yaw)
    sensed = near & ((counts > 0) | (seen > 0))
    records = []
    for index in np.flatnonzero(sensed.any(0)):
        frames = np.flatnonzero(sensed[:, index])
        actor = scene.actors[index]
        length, width, height = actor.model.size
        for k in range(int(frames[0]), int(frames[-1]) + 1):
            centre, yaw = poses[k, int(index)]
            x, y, z = (float(value) for value in centre)
            records.append(
                BoxRecord(
                    int(index),
                    k,
                    (x, y, z),
                    (width, length, height),
                    float(yaw),
                    int(counts[k, index]),
                    _visibility(int(seen[k, index]), int(free[k, index])),
                    actor.attribute(times_s[k]),
                )
            )
    return records
