"""Render camera images of a scene."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import cv2
import numpy as np

from scripts.toy_nuscenes.casting import Hits, ImageFrame
from scripts.toy_nuscenes.rig import Camera
from scripts.toy_nuscenes.scene import Scene
from scripts.toy_nuscenes.shading import View

_LEVELS = 4096
_WHITE = 2.6  # radiance that the tone curve maps to white


def _tone_curve() -> np.ndarray:
    """Return display values float32 [4096] in [0, 255] for radiance 0 to `_WHITE`.

    The curve compresses highlights.
    """
    x = np.linspace(0, _WHITE, _LEVELS)
    linear = np.clip(x * (1 + x / _WHITE**2) / (1 + 0.55 * x) * 1.15, 0, 1)
    shown = linear ** (1 / 2.2)
    shown = shown + 0.35 * (shown - 0.5) * shown * (
        1 - shown
    )  # a little more contrast in the middle
    return (255 * np.clip(shown, 0, 1)).astype(np.float32)


_TONE = _tone_curve()


@dataclass
class Shot:
    """Image uint8 [H, W, 3] (BGR, as OpenCV writes it) and the hits of its pixels."""

    image: np.ndarray
    hits: Hits


def take_image(
    scene: Scene,
    camera: Camera,
    time_s: float,
    size: tuple[int, int],
    noise_seed: tuple[int, ...],
    count_free: bool = False,
) -> Shot:
    """Render the image of a camera.

    Args:
        scene: the world.
        camera: the camera of the rig.
        time_s: time of the exposure, seconds after the first key frame.
        size: width and height in pixels.
        noise_seed: seed of the sensor noise.
        count_free: whether to fill `hits.free_rays`.
    """
    width, height = size
    ego = scene.ego(time_s)
    origin = ego.rotation @ np.array(camera.translation) + ego.translation
    rotation = ego.rotation @ camera.rotation()
    rays = camera.ray_directions(width, height).astype(np.float32)
    directions = rays @ rotation.T.astype(np.float32)
    posed = scene.posed(time_s)
    frame = ImageFrame(origin, rotation, camera.intrinsic(width, height), height, width)
    hits = scene.cast(posed, origin, directions, frame, count_free)
    yaws = {p.index: p.yaw for p in posed}
    pixel = 1.0 / float(camera.intrinsic(width, height)[0, 0])
    shadows = scene.shadows_at(time_s, posed, frame)
    radiance = scene.shader.colours(View.of(hits, origin, directions, pixel), shadows, yaws)
    return Shot(develop(radiance.reshape(height, width, 3), scene, noise_seed), hits)


@lru_cache(maxsize=1)
def _noise() -> np.ndarray:
    """Return precomputed sensor noise with standard deviation 1: float32 [512, 512, 3]."""
    return np.random.default_rng(20).standard_normal((512, 512, 3), dtype=np.float32)


def _add_noise(shown: np.ndarray, strength: float, seed: tuple[int, ...]) -> None:
    """Add noise to an image [H, W, 3]: randomly placed crops of the precomputed noise."""
    rng, stock = np.random.default_rng(seed), _noise()
    for row in range(0, shown.shape[0], 256):
        for column in range(0, shown.shape[1], 256):
            part = shown[row : row + 256, column : column + 256]
            y, x = rng.integers(0, 257, 2)
            part += stock[y : y + part.shape[0], x : x + part.shape[1]] * np.float32(strength)


@lru_cache(maxsize=1)
def _falloff(height: int, width: int) -> np.ndarray:
    """Return the vignetting: the share of light that reaches each pixel, float32 [H, W, 3]."""
    x = np.linspace(-1, 1, width, dtype=np.float32)[None]
    y = np.linspace(-1, 1, height, dtype=np.float32)[:, None]
    return np.repeat((1 - 0.10 * (x * x + 0.4 * y * y))[..., None], 3, 2)


def develop(radiance: np.ndarray, scene: Scene, noise_seed: tuple[int, ...]) -> np.ndarray:
    """Apply the camera response: lens blur, vignetting, exposure, tone curve, noise.

    Returns:
        uint8 [H, W, 3] BGR.
    """
    height, width, _ = radiance.shape
    radiance = cv2.GaussianBlur(radiance, (3, 3), 0.45)
    radiance *= _falloff(height, width)
    radiance *= np.float32(scene.light.exposure * (_LEVELS - 1) / _WHITE)
    shown = np.take(_TONE, radiance.astype(np.int32), mode="clip")
    _add_noise(shown, scene.light.noise, noise_seed)
    return np.clip(shown + np.float32(0.5), 0, 255).astype(np.uint8)[..., ::-1]
