"""Choose the past frames of a stream that a prediction uses.

Legend: T frames of a prediction (current first).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Generic, Literal, Protocol, TypeVar

from loaders.datasets.frames import MAX_HISTORY, history_offsets
from scripts.runtime.errors import ConfigError

# Rate of nuScenes' cameras; intervals are counted in frames at this rate.
CAMERA_RATE_HZ = 12.0

HistoryRule = Literal["time", "count"]


class Timed(Protocol):
    """Protocol of objects with a time in microseconds."""

    @property
    def time_us(self) -> int:
        """Return microseconds."""


Entry = TypeVar("Entry", bound=Timed)


@dataclass(frozen=True)
class Interval:
    """Interval between the frames of a prediction.

    Attributes:
        frames: Camera frames of the data set between one frame and the next.
        seconds: The same in seconds.
        rule: 'time' takes the frames nearest to the times of the data set's frames, at any rate of
            the stream; 'count' takes every `frames`-th, as the data set does.
    """

    frames: int
    seconds: float
    rule: HistoryRule = "time"

    def __post_init__(self) -> None:
        """Check the values.

        Raises:
            ConfigError: One of them is unusable.
        """
        if self.rule not in ("time", "count"):
            raise ConfigError(f"history is '{self.rule}': give 'time' or 'count'")
        if not isinstance(self.seconds, (int, float)) or not 0 < self.seconds < float("inf"):
            raise ConfigError(f"interval_s is {self.seconds}: give seconds above 0")


class History(Generic[Entry]):
    """History of a stream, for as long as predictions need it.

    Its size is bounded whatever the rate of the stream: with the rule 'time', frames that follow
    one another faster than half a camera frame of the data set are not all kept.

    Args:
        num_frames: T.
        interval: Between the frames.
    """

    def __init__(self, num_frames: int, interval: Interval) -> None:
        self._num_frames = num_frames
        self._interval = interval
        self._step_us = round(interval.seconds * 1e6)
        self._least_us = self._step_us // (2 * interval.frames)
        reach = (num_frames - 1) * interval.frames
        self._limit = min(MAX_HISTORY, reach) if interval.rule == "count" else 2 * reach + 2
        self._kept: deque[Entry] = deque(maxlen=max(1, self._limit))

    def __len__(self) -> int:
        return len(self._kept)

    def __iter__(self) -> Iterator[Entry]:
        """Iterate from the oldest to the newest."""
        return iter(self._kept)

    @property
    def newest(self) -> Entry | None:
        """Return the last frame that was kept."""
        return self._kept[-1] if self._kept else None

    def clear(self) -> None:
        """Remove all frames."""
        self._kept.clear()

    def add(self, entry: Entry) -> bool:
        """Add a frame that is newer than all others, and drop those that are too old.

        Returns:
            Whether the frame is kept.
        """
        if self._num_frames == 1:
            return False
        while self._kept and self._is_too_old(self._kept[0], entry.time_us):
            self._kept.popleft()
        if self._interval.rule == "time" and self._kept:
            if entry.time_us - self._kept[-1].time_us < self._least_us:
                return False
        self._kept.append(entry)
        return True

    def _is_too_old(self, entry: Entry, time_us: int) -> bool:
        """Return whether a frame is too old for all predictions from a time on."""
        if self._interval.rule == "count":
            return False
        reach = (self._num_frames - 1) * self._step_us + self._step_us // 2
        return time_us - entry.time_us > reach

    def choose(self, current: Entry) -> list[Entry]:
        """Return T frames, the current one first, none newer than the one before it.

        Missing older frames are replaced by the oldest one, or by the current one if there is none.

        Args:
            current: A frame that has not been added yet.
        """
        past = [entry for entry in self._kept if not self._is_too_old(entry, current.time_us)]
        past.reverse()  # newest first
        if self._interval.rule == "count":
            offsets = history_offsets(
                len(past), self._num_frames, None, test_interval=self._interval.frames
            )
            return [current if not offset else past[offset - 1] for offset in offsets]
        if not past:
            return [current] * self._num_frames
        chosen = [current]
        for step in range(1, self._num_frames):
            wanted = current.time_us - step * self._step_us
            # Of two equally near frames, take the older one.
            chosen.append(min(reversed(past), key=lambda frame: abs(frame.time_us - wanted)))
        return chosen
