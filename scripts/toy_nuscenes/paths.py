"""Plane curves: centre lines, lanes and paths of actors. Units are metres and radians."""

from __future__ import annotations

import bisect
import math
from collections.abc import Callable, Sequence

import numpy as np

STEP_M = 0.5


class Polyline:
    """Curve through points, with arc length `s` and signed lateral offset `d` (positive left).

    Beyond its ends the curve continues straight.
    """

    def __init__(self, points: np.ndarray) -> None:
        """Create a curve through points [n, 2], n >= 2, consecutive points distinct."""
        deltas = np.diff(points, axis=0)
        lengths = np.hypot(deltas[:, 0], deltas[:, 1])
        self.points = points
        self.s = np.concatenate([[0.0], np.cumsum(lengths)])
        heading = np.unwrap(np.arctan2(deltas[:, 1], deltas[:, 0]))
        inner = (heading[1:] + heading[:-1]) / 2
        self.heading = np.concatenate([heading[:1], inner, heading[-1:]])
        self._columns = np.stack([points[:, 0], points[:, 1], self.heading])
        self._arc: list[float] = self.s.tolist()
        self._rows: list[list[float]] = self._columns.T.tolist()

    @property
    def length(self) -> float:
        """Arc length in metres."""
        return float(self.s[-1])

    def at(
        self, s: np.ndarray | float, d: np.ndarray | float = 0.0
    ) -> tuple[np.ndarray, np.ndarray]:
        """Return positions [..., 2] and headings [...] at arc lengths `s` and offsets `d`."""
        s = np.asarray(s, dtype=np.float64)
        inside = np.clip(s, 0.0, self.length)
        k = np.minimum(np.searchsorted(self.s, inside, "right") - 1, len(self.s) - 2)
        share = (inside - self.s[k]) / (self.s[k + 1] - self.s[k])
        x, y, heading = self._columns[:, k] * (1 - share) + self._columns[:, k + 1] * share
        beyond = s - inside
        cos, sin = np.cos(heading), np.sin(heading)
        return np.stack([x + beyond * cos - d * sin, y + beyond * sin + d * cos], -1), heading

    def pose(self, s: float, d: float = 0.0) -> tuple[float, float, float]:
        """Return x, y and heading of one point; faster than `at`."""
        inside = min(max(s, 0.0), self._arc[-1])
        k = min(bisect.bisect_right(self._arc, inside) - 1, len(self._arc) - 2)
        share = (inside - self._arc[k]) / (self._arc[k + 1] - self._arc[k])
        (x0, y0, h0), (x1, y1, h1) = self._rows[k], self._rows[k + 1]
        heading = h0 + share * (h1 - h0)
        cos, sin = math.cos(heading), math.sin(heading)
        beyond = s - inside
        x, y = x0 + share * (x1 - x0), y0 + share * (y1 - y0)
        return x + beyond * cos - d * sin, y + beyond * sin + d * cos, heading

    def offset(self, d: float, start: float | None = None, stop: float | None = None) -> Polyline:
        """Return the parallel curve at lateral offset `d` between two arc lengths of this curve."""
        start = 0.0 if start is None else start
        stop = self.length if stop is None else stop
        count = max(2, int(np.ceil(abs(stop - start) / STEP_M)) + 1)
        return Polyline(self.at(np.linspace(start, stop, count), d)[0])

    def strip(self, d0: float, d1: float, start: float, stop: float) -> np.ndarray:
        """Return the outline [n, 2] of the band between two offsets and two arc lengths."""
        count = max(2, int(np.ceil(abs(stop - start) / STEP_M)) + 1)
        s = np.linspace(start, stop, count)
        return np.concatenate([self.at(s, d0)[0], self.at(s, d1)[0][::-1]])

    def nearest(self, points: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return arc length [n] and offset [n] of the vertex nearest to each of `points` [n, 2]."""
        from scipy.spatial import cKDTree

        _, index = cKDTree(self.points).query(points)
        relative = points - self.points[index]
        heading = self.heading[index]
        along = relative[:, 0] * np.cos(heading) + relative[:, 1] * np.sin(heading)
        across = -relative[:, 0] * np.sin(heading) + relative[:, 1] * np.cos(heading)
        return self.s[index] + along, across


def curve(
    start: Sequence[float], heading: float, pieces: Sequence[tuple[float, float]]
) -> Polyline:
    """Return a curve of pieces `(length m, curvature 1/m)` with smooth transitions of curvature."""
    curvature = np.concatenate(
        [np.full(max(1, round(length / STEP_M)), kappa) for length, kappa in pieces]
    )
    kernel = np.ones(21) / 21
    curvature = np.convolve(np.pad(curvature, 10, mode="edge"), kernel, mode="valid")
    angles = heading + np.concatenate([[0.0], np.cumsum(curvature) * STEP_M])
    middle = (angles[1:] + angles[:-1]) / 2
    steps = np.stack([np.cos(middle), np.sin(middle)], -1) * STEP_M
    return Polyline(np.asarray(start) + np.concatenate([np.zeros((1, 2)), np.cumsum(steps, 0)]))


def join(first: np.ndarray, second: np.ndarray) -> Polyline:
    """Join two path pieces [n, 2], [m, 2] by a cubic Bezier curve that keeps both directions."""
    a, b = first[-1], second[0]
    reach = 0.5 * float(np.hypot(*(b - a)))
    out = first[-1] - first[-2]
    into = second[1] - second[0]
    c0 = a + out / np.hypot(*out) * reach
    c1 = b - into / np.hypot(*into) * reach
    t = np.linspace(0.0, 1.0, 41)[1:-1, None]
    bend = (1 - t) ** 3 * a + 3 * t * (1 - t) ** 2 * c0 + 3 * t**2 * (1 - t) * c1 + t**3 * b
    points = np.concatenate([first, bend, second])
    raw = Polyline(points)
    return Polyline(raw.at(np.arange(0.0, raw.length, 0.25))[0])


class Motion:
    """Pose as a function of time: a path, the travelled arc length, and a lateral offset."""

    def __init__(
        self,
        path: Polyline,
        travelled: Callable[[float], float],
        lateral: Callable[[float], float] | None = None,
        yaw_offset: float = 0.0,
    ) -> None:
        """Create a motion.

        Args:
            path: the curve to follow.
            travelled: time in seconds -> arc length in metres.
            lateral: time in seconds -> offset to the left in metres (None: 0).
            yaw_offset: constant angle between the path's direction and the heading.
        """
        self.path, self.travelled, self.lateral, self.yaw_offset = (
            path,
            travelled,
            lateral,
            yaw_offset,
        )
        self.moves = travelled(1.0) != travelled(0.0)
        self._pose = None if self.moves else self._pose_at(0.0)

    def pose(self, time_s: float) -> tuple[float, float, float]:
        """Return position x, y (metres) and yaw (radians) at a time in seconds."""
        return self._pose or self._pose_at(time_s)

    def _pose_at(self, time_s: float) -> tuple[float, float, float]:
        offset = self.lateral(time_s) if self.lateral else 0.0
        x, y, yaw = self.path.pose(self.travelled(time_s), offset)
        yaw += self.yaw_offset
        if self.lateral:
            step = 0.05
            forward = self.travelled(time_s + step) - self.travelled(time_s)
            sideways = self.lateral(time_s + step) - offset
            yaw += math.atan2(sideways, forward) if forward > 1e-3 else 0.0
        return x, y, yaw

    def speed(self, time_s: float) -> float:
        """Return the speed along the path in m/s at a time in seconds."""
        return abs(self.travelled(time_s + 0.05) - self.travelled(time_s - 0.05)) / 0.1


def standing(x: float, y: float, yaw: float) -> Motion:
    """Return the motion of an actor that stays at a pose."""
    direction = np.array([np.cos(yaw), np.sin(yaw)])
    centre = np.array([x, y])
    return Motion(Polyline(np.stack([centre, centre + direction])), lambda _: 0.0)


def cruising(path: Polyline, start: float, speed: float) -> Motion:
    """Return the motion along a path at constant speed in m/s, from arc length `start`."""
    return Motion(path, lambda time_s: start + speed * time_s)
