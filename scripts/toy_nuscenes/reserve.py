"""Occupied ground while a world is being filled."""

from __future__ import annotations

import cv2
import numpy as np

from scripts.toy_nuscenes.ground import Canvas, Ground
from scripts.toy_nuscenes.layout import Layout


class Reserve:
    """Raster of occupied ground at 0.4 m, so that objects do not overlap."""

    def __init__(self, ground: Ground, layout: Layout) -> None:
        """Start with the roads of `ground` occupied."""
        self.canvas = Canvas(layout.lower, layout.upper, 0.4)
        rows, columns = self.canvas.shape
        small = cv2.resize(ground.road_distance, (columns, rows), interpolation=cv2.INTER_NEAREST)
        self.taken = (small < 0.3).astype(np.uint8)

    def claim(self, outline: np.ndarray, *, keep: bool = True) -> bool:
        """Claim the ground inside an outline [n, 2] if it is free and inside the world.

        Return whether it was.
        """
        pixels = self.canvas.pixels(outline)
        low, high = np.floor(pixels.min(0)).astype(int), np.ceil(pixels.max(0)).astype(int) + 1
        rows, columns = self.canvas.shape
        if low.min() < 2 or high[0] > columns - 2 or high[1] > rows - 2:
            return False
        mask = np.zeros((high[1] - low[1], high[0] - low[0]), np.uint8)
        cv2.fillPoly(mask, [np.round(pixels - low).astype(np.int32)[:, None]], 1)
        view = self.taken[low[1] : high[1], low[0] : high[0]]
        if np.any(view & mask):
            return False
        if keep:
            view |= mask
        return True


def rectangle(centre: np.ndarray, yaw: float, half_length: float, half_width: float) -> np.ndarray:
    """Return the corners [4, 2] of a rectangle."""
    along = np.array([np.cos(yaw), np.sin(yaw)]) * half_length
    across = np.array([-np.sin(yaw), np.cos(yaw)]) * half_width
    return centre + np.array([along + across, along - across, -along - across, -along + across])
