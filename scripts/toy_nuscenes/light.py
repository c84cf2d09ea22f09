"""Daylight: sun, sky, clouds and haze. Radiance is in units of a sunlit white surface."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from scripts.toy_nuscenes.arrays import as_columns, f32, times
from scripts.toy_nuscenes.noise import noise_at, noise_tile


@dataclass(frozen=True)
class Light:
    """Light of a scene; colours are RGB.

    to_sun: unit [3] towards the sun, scene frame. sun: colour of direct light. zenith, horizon:
    sky colours.
    ambient: brightness of the sky light on surfaces. clouds: 0 (none) to 1. haze_m: distance at
    which contrast falls to 37 %. exposure: gain before the tone curve.
    """

    to_sun: np.ndarray
    sun: np.ndarray
    zenith: np.ndarray
    horizon: np.ndarray
    ambient: float
    clouds: float
    haze_m: float
    exposure: float
    noise: float
    seed: int


_PRESETS = {
    # elevation deg, sun colour, zenith, horizon, ambient, clouds, haze m
    "clear": (52.0, (1.00, 0.95, 0.86), (0.16, 0.32, 0.66), (0.62, 0.73, 0.85), 0.34, 0.45, 600.0),
    "afternoon": (
        30.0,
        (1.02, 0.82, 0.58),
        (0.20, 0.33, 0.60),
        (0.82, 0.74, 0.62),
        0.36,
        0.55,
        420.0,
    ),
    "overcast": (
        58.0,
        (0.16, 0.16, 0.16),
        (0.52, 0.55, 0.60),
        (0.72, 0.74, 0.77),
        0.85,
        0.95,
        320.0,
    ),
    "morning": (
        24.0,
        (0.96, 0.78, 0.60),
        (0.24, 0.36, 0.58),
        (0.86, 0.78, 0.68),
        0.38,
        0.35,
        280.0,
    ),
    "haze": (44.0, (0.62, 0.58, 0.52), (0.46, 0.52, 0.60), (0.76, 0.76, 0.74), 0.58, 0.75, 170.0),
}


def make_light(name: str, seed: tuple[int, ...]) -> Light:
    """Return the light of a recipe; direction, strength and exposure vary with the seed."""
    rng = np.random.default_rng([*seed, 5])
    elevation, sun, zenith, horizon, ambient, clouds, haze = _PRESETS[name]
    height = np.deg2rad(elevation + rng.uniform(-6, 6))
    azimuth = rng.uniform(0, 2 * np.pi)
    to_sun = np.array(
        [np.cos(height) * np.cos(azimuth), np.cos(height) * np.sin(azimuth), np.sin(height)]
    )
    return Light(
        to_sun=to_sun,
        sun=f32(sun) * np.float32(rng.uniform(1.0, 1.25)),
        zenith=f32(zenith),
        horizon=f32(horizon),
        ambient=ambient * rng.uniform(0.85, 1.15),
        clouds=clouds,
        haze_m=haze * rng.uniform(0.8, 1.3),
        exposure=rng.uniform(0.85, 1.15),
        noise=rng.uniform(0.6, 1.8),
        seed=int(rng.integers(1 << 20)),
    )


def squared(values: np.ndarray, times: int) -> np.ndarray:
    """Return `values` squared `times` times, which is the power 2 ** times."""
    for _ in range(times):
        values = values * values
    return values


def sky_light(light: Light) -> np.ndarray:
    """Return the colour float32 [3] of the light from the whole sky on a horizontal surface."""
    return (0.55 * light.zenith + 0.45 * light.horizon) * np.float32(light.ambient / 0.45)


def sky_colour(light: Light, directions: np.ndarray) -> np.ndarray:
    """Return the radiance float32 [n, 3] of the sky along unit directions float32 [n, 3].

    A skyline of far hills bounds it below.
    """
    up = np.maximum(directions[:, 2], np.float32(0))
    blend = np.minimum(np.sqrt(up) * np.float32(1.15), np.float32(1))
    colour = np.stack([1 - blend, blend]).T @ np.stack([light.horizon, light.zenith])
    plane = 9.0 / (up + 0.09)
    x, y = directions[:, 0] * plane, directions[:, 1] * plane
    cover = (
        noise_at(light.seed % 97, 14.0, x, y, 0.55) * 0.7
        + noise_at(light.seed % 89 + 100, 5.0, x, y, 0.5) * 0.4
    )
    cover = np.clip((cover + 2.2 * light.clouds - 1.0) * 0.7, 0, 1) * np.clip(up * 9, 0, 1)
    white = 0.55 * light.horizon + 0.45 * np.float32(light.sun.max())
    _blend(colour, white, cover * (0.35 + 0.5 * light.clouds))
    towards = directions @ light.to_sun.astype(np.float32)
    broad = squared(np.clip(towards, 0, 1), 5)
    glow = broad * np.float32(0.45) + squared(broad, 4) * np.float32(6.0)
    colour += times(glow * (1.15 - light.clouds), light.sun)
    return colour


def add_skyline(light: Light, directions: np.ndarray, colour: np.ndarray) -> None:
    """Darken the lowest part of the sky where far hills and roofs cover it."""
    highest = 0.036 + 0.016 * float(noise_tile(light.seed % 83, 12.0).max())
    rows = np.flatnonzero(directions[:, 2] < max(0.061, highest))
    x, y, z = np.take(directions, rows, 0).T
    azimuth = np.arctan2(y, x)
    zero = np.zeros_like(azimuth)
    hills = 0.035 + 0.016 * noise_at(light.seed % 83, 12.0, azimuth * 40, zero, 0.5)
    roofs = 0.03 + 0.03 * np.sign(
        noise_at(light.seed % 79, 4.0, np.floor(azimuth * 26), zero, 0.25)
    )
    edge = np.maximum(hills, roofs * (np.sin(azimuth * 3 + light.seed) > -0.2))
    inside = np.clip((edge - z) * 150, 0, 1)
    low = np.take(colour, rows, 0)
    _blend(low, light.horizon * f32([0.72, 0.78, 0.82]), inside * 0.8)
    colour[rows] = low


def add_haze(light: Light, colour: np.ndarray, distance: np.ndarray) -> None:
    """Mix surfaces [n, 3] at distances [n] with the light scattered in between."""
    _blend(colour, light.horizon, 1 - np.exp(-distance / np.float32(light.haze_m)))


def _blend(colour: np.ndarray, other: np.ndarray, share: np.ndarray) -> None:
    """Mix float32 [n, 3] colours in place with a share float32 [n] of another colour [3]."""
    colour *= as_columns(1 - share)
    colour += times(share, other)
