"""Features of frames seen before, for streaming evaluation.

Dimension letters: N cameras, C channels, h, w size of a feature map.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Hashable, Sequence

from torch import Tensor

FrameFeatures = tuple[Tensor, ...]
"""Feature maps ``[N, C, h, w]`` of one frame, one per pyramid level."""


class FeatureCache:
    """Bounded cache of frames, the least recently used go first.

    Args:
        max_frames: Frames to keep between calls.
    """

    def __init__(self, max_frames: int) -> None:
        self.max_frames = max_frames
        self._frames: OrderedDict[Hashable, FrameFeatures] = OrderedDict()

    def __len__(self) -> int:
        return len(self._frames)

    def clear(self) -> None:
        """Forget all frames."""
        self._frames.clear()

    def fetch(
        self,
        keys: Sequence[Hashable],
        compute: Callable[[list[int]], Sequence[FrameFeatures]],
    ) -> list[FrameFeatures]:
        """Return the features of the frames with these keys.

        Args:
            keys: Identity of every wanted frame.
            compute: Gives the features of the frames at some positions of ``keys``; called once,
                with one position of every key that is not cached, and not if all are.
        """
        missing = {key: i for i, key in enumerate(keys) if key not in self._frames}
        if missing:
            self._frames.update(zip(missing, compute(list(missing.values())), strict=True))
        for key in keys:
            self._frames.move_to_end(key)
        frames = [self._frames[key] for key in keys]
        while len(self._frames) > self.max_frames:
            self._frames.popitem(last=False)
        return frames
