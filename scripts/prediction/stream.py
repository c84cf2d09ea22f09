"""A stream of frames: each frame is history for those after it."""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from loaders.datasets.occupancy_dataset import OccupancyDataset
from scripts.prediction.errors import FrameError
from scripts.prediction.frames import Frame, seconds
from scripts.prediction.history import History, Interval
from scripts.prediction.preparation import FramePreparer, Place, PreparedFrame, Sweep

# Pushes that measure the rate of a stream, and maximum frames of an interval with kept features.
_RATE_PUSHES, _MOST_PUSHES = 12, 32

# Sequences of predictions of a process, see `Place`.
_SEQUENCES = itertools.count()


@dataclass(frozen=True)
class StreamSample:
    """A frame with its history, ready for the model.

    Attributes:
        item: A sample of `PackOccSample`.
        frames: The T frames of the sample, the current one first.
    """

    item: dict[str, Any]
    frames: Sequence[PreparedFrame]


class FrameStream:
    """Stream of frames in the order of their times, with as many past frames as predictions need.

    Args:
        dataset: See `scripts.prediction.model.unread_dataset`.
        interval: Interval between the frames of a prediction.
        max_stand_in_age_s: Largest age in seconds of an image that replaces a missing one.
        is_sequence: Whether predictions form a sequence; if not, models that keep queries between
            predictions treat each one as a single prediction.
    """

    def __init__(
        self,
        dataset: OccupancyDataset,
        interval: Interval,
        max_stand_in_age_s: float = 1.0,
        is_sequence: bool = True,
    ) -> None:
        self._preparer = FramePreparer(dataset, max_stand_in_age_s)
        self._num_frames, self._interval = dataset.num_frames, interval
        self._is_sequence = is_sequence
        self._place: Place | None = None
        # A gap after which no past frame is used.
        self._longest_gap_us = (dataset.num_frames + 1) * interval.seconds * 1e6
        self._history: History[PreparedFrame] = History(dataset.num_frames, interval)
        self._newest: PreparedFrame | None = None
        self._predicted: set[int] = set()
        self._pushes: deque[int] = deque(maxlen=_RATE_PUSHES)

    @property
    def cameras(self) -> tuple[str, ...]:
        """Return the names of the cameras in the order of the model."""
        return self._preparer.cameras

    @property
    def kept_frames(self) -> int:
        """Return the number of past frames in memory."""
        return len(self._history)

    def reset(self) -> None:
        """Clear all frames."""
        self._preparer.clear()
        self._history.clear()
        self._predicted.clear()
        self._pushes.clear()
        self._newest = self._place = None

    def observe(self, frame: Frame) -> PreparedFrame:
        """Add a frame without a prediction.

        Raises:
            FrameError: See `FramePreparer.prepare`, or it is not newer than the last one.
        """
        current = self._prepare(frame)
        self._keep(current, self._preparer.points(current, frame))
        return current

    def push(self, frame: Frame) -> StreamSample:
        """Add a frame, and return it with its history.

        Raises:
            FrameError: See `FramePreparer.prepare`, or it is not newer than the last one.
        """
        current = self._prepare(frame)
        frames = self._history.choose(current)
        sweep = self._preparer.points(current, frame)
        place = self._next_place(current) if self._is_sequence else None
        item = self._preparer.pack(frames, frame, sweep, place)
        self._keep(current, sweep)
        self._place = place
        self._pushes.append(current.time_us)
        self._predicted |= {each.number for each in frames}
        self._predicted &= {each.number for each in (*self._history, current)}
        return StreamSample(item, frames)

    def useful_features(self) -> int:
        """Return the number of frames whose features should be cached.

        A frame is used again after an interval. Until then other predictions use T frames each;
        they share frames if the stream is faster than the frames kept of it. The model needs space
        for one more sample to arrange them.
        """
        kept = [each.time_us for each in self._history if each.number in self._predicted]
        pushes, past = (self._per_interval(times) for times in (self._pushes, kept))
        num_frames = self._num_frames
        useful = min(pushes, _MOST_PUSHES) + past * (num_frames - 1)
        return max(useful, len(self._predicted)) + num_frames

    def _per_interval(self, times_us: Sequence[int]) -> int:
        """Return the number of stream frames in an interval, at their mean rate."""
        if len(times_us) < 2:
            return 1
        gap_us = (times_us[-1] - times_us[0]) / (len(times_us) - 1)
        return max(1, round(self._interval.seconds * 1e6 / gap_us))

    def _next_place(self, current: PreparedFrame) -> Place:
        last = self._pushes[-1] if self._pushes else None
        if self._place is None or last is None or current.time_us - last > self._longest_gap_us:
            return Place(next(_SEQUENCES), 0)
        return Place(self._place.sequence, self._place.index + 1)

    def _prepare(self, frame: Frame) -> PreparedFrame:
        if not isinstance(frame, Frame):
            raise FrameError(
                f"a {type(frame).__name__} was given, expected a Frame (from models.inference "
                "import Frame)"
            )
        newest, time_us = self._newest, seconds(frame.time_s, f"time_s of {frame.label}")
        if newest is not None and time_us <= newest.time_us:
            raise FrameError(
                f"{frame.label} (time_s {frame.time_s:.6f}) is not newer than the last one "
                f"({newest.time_us * 1e-6:.6f} s): give frames in the order of their times, or "
                "call reset() at the start of another recording"
            )
        return self._preparer.prepare(frame)

    def _keep(self, current: PreparedFrame, sweep: Sweep | None) -> None:
        self._preparer.keep(current, sweep)
        self._history.add(current)
        self._newest = current
