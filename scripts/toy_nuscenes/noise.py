"""Tileable noise and image sampling, the basis of all textures."""

from __future__ import annotations

from functools import lru_cache

import cv2
import numpy as np

TILE = 512


@lru_cache(maxsize=64)
def noise_tile(seed: int, sigma: float) -> np.ndarray:
    """Return tileable smooth noise float32 [512, 512] with mean 0 and standard deviation 1.

    Args:
        seed: seed of the random numbers.
        sigma: size of the blobs in texels (0: white noise).
    """
    values = np.random.default_rng([seed, 77]).standard_normal((TILE, TILE)).astype(np.float32)
    if sigma > 0:
        border = int(4 * sigma) + 1
        values = cv2.GaussianBlur(np.pad(values, border, mode="wrap"), (0, 0), sigma)[
            border:-border, border:-border
        ]
    return (values - values.mean()) / values.std()


def sample(image: np.ndarray, u: np.ndarray, v: np.ndarray, *, wrap: bool = False) -> np.ndarray:
    """Return bilinear samples [n] or [n, C] of an image [H, W] or [H, W, C].

    Samples are at columns `u` [n] and rows `v` [n]. Beyond its border the image repeats if `wrap`;
    otherwise its edge continues.
    """
    count = len(u)
    if count == 0:
        return np.zeros((0, *image.shape[2:]), image.dtype)
    width = 256  # OpenCV requires maps with fewer than 32768 rows and columns
    rows = -(-count // width)
    maps = np.zeros((2, rows * width), np.float32)
    maps[0, :count] = u
    maps[1, :count] = v
    if wrap:
        for axis, size in enumerate((image.shape[1], image.shape[0])):
            maps[axis] -= np.floor(maps[axis] / np.float32(size)) * np.float32(size)
    else:
        np.clip(maps[0], -1, image.shape[1], out=maps[0])
        np.clip(maps[1], -1, image.shape[0], out=maps[1])
    border = cv2.BORDER_WRAP if wrap else cv2.BORDER_REPLICATE
    out = cv2.remap(
        image,
        maps[0].reshape(rows, width),
        maps[1].reshape(rows, width),
        cv2.INTER_LINEAR,
        None,
        border,
    )
    return out.reshape(rows * width, *image.shape[2:])[:count]


def noise_at(seed: int, sigma: float, x: np.ndarray, y: np.ndarray, texel_m: float) -> np.ndarray:
    """Return noise float32 [n] at positions in metres; the pattern repeats after 512 texels."""
    return sample(noise_tile(seed, sigma), x / texel_m, y / texel_m, wrap=True)


def hash01(*keys: np.ndarray) -> np.ndarray:
    """Return pseudo-random numbers float32 [n] in [0, 1), hashed from integer keys [n] (32 bit)."""
    state = np.full(np.broadcast(*keys).shape, 0x9E3779B9, np.uint32)
    shifted = np.empty_like(state)
    with np.errstate(over="ignore"):
        for key in keys:
            state ^= np.asarray(key).astype(np.int32).astype(np.uint32)
            state *= np.uint32(0x85EBCA6B)
            state ^= np.right_shift(state, np.uint32(13), out=shifted)
            state *= np.uint32(0xC2B2AE35)
            state ^= np.right_shift(state, np.uint32(16), out=shifted)
    return (state >> np.uint32(8)).astype(np.float32) / np.float32(1 << 24)
