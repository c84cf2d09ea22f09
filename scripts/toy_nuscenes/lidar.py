"""Simulation of the 32-beam LiDAR.

The ego motion during a LiDAR turn is ignored: all points of a sweep are measured at its time stamp.
"""

from __future__ import annotations

import numpy as np

from scripts.toy_nuscenes.casting import Hits, What
from scripts.toy_nuscenes.classes import Occ
from scripts.toy_nuscenes.rig import LIDAR_TRANSLATION, lidar_directions, lidar_rotation
from scripts.toy_nuscenes.scene import Scene
from scripts.toy_nuscenes.shapes import Mat

MAX_RANGE_M = 70.0
RANGE_NOISE_M = 0.02
DROP_OUT = 0.05

_GROUND_INTENSITY = {
    int(Occ.DRIVEABLE_SURFACE): 12.0,
    int(Occ.OTHER_FLAT): 20.0,
    int(Occ.SIDEWALK): 26.0,
    int(Occ.TERRAIN): 16.0,
}
_MAT_INTENSITY = {
    Mat.PLATE: 220.0,
    Mat.HEADLIGHT: 120.0,
    Mat.TAILLIGHT: 180.0,
    Mat.TYRE: 4.0,
    Mat.GLASS: 3.0,
    Mat.WHITE: 160.0,
    Mat.ORANGE: 70.0,
    Mat.TRIM: 6.0,
}


def _intensities(scene: Scene, hits: Hits, points: np.ndarray, cosine: np.ndarray) -> np.ndarray:
    out = np.full(len(points), 20.0, np.float32)
    ground = hits.what == What.GROUND
    table = np.full(18, 15.0, np.float32)
    for occ, value in _GROUND_INTENSITY.items():
        table[occ] = value
    out[ground] = table[scene.ground.lookup(scene.ground.classes, points[ground, :2])]
    static = hits.what == What.STATIC
    out[static] = 8 + 50 * scene.world.slots.colour[hits.slot[static]].mean(1)
    for index in np.unique(hits.actor[hits.what == What.ACTOR]):
        mine = np.flatnonzero((hits.what == What.ACTOR) & (hits.actor == index))
        actor = scene.actors[index]
        mats = actor.model.grid[tuple(hits.voxel[mine].T)]
        values = 60 * actor.palette.mean(1)
        for mat, value in _MAT_INTENSITY.items():
            values[mat] = value
        out[mine] = values[mats]
    return out * np.clip(0.35 + 0.65 * cosine, 0, 1)


def sweep(scene: Scene, time_s: float, num_azimuths: int, seed: tuple[int, ...]) -> np.ndarray:
    """Return one turn of the LiDAR.

    Args:
        scene: the world.
        time_s: seconds after the first key frame.
        num_azimuths: firings per turn; each has 32 beams.
        seed: seed of the range noise and drop-out.

    Returns:
        float32 [n, 5]: x, y, z in the LiDAR frame (metres), intensity in [0, 255], ring index.
    """
    rng = np.random.default_rng(seed)
    ego = scene.ego(time_s)
    origin = ego.rotation @ np.array(LIDAR_TRANSLATION) + ego.translation
    local, rings = lidar_directions(num_azimuths)
    directions = (local @ (ego.rotation @ lidar_rotation()).T).astype(np.float32)
    hits = scene.cast(scene.posed(time_s), origin, directions)
    points = directions * np.minimum(hits.distance, 1e4)[:, None] + origin.astype(np.float32)
    cosine = np.where(hits.what == What.GROUND, -directions[:, 2], 0.7)
    intensity = _intensities(scene, hits, points, cosine)
    chance = DROP_OUT + 0.35 * (hits.distance / MAX_RANGE_M) ** 2 + 0.25 * (intensity < 4)
    keep = (hits.distance < MAX_RANGE_M) & (rng.random(len(rings)) > chance)
    distance = hits.distance[keep] + rng.normal(0, RANGE_NOISE_M, keep.sum())
    intensity = np.clip(np.round(intensity[keep] * rng.uniform(0.85, 1.15, len(distance))), 0, 255)
    return np.column_stack([local[keep] * distance[:, None], intensity, rings[keep]]).astype(
        np.float32
    )
