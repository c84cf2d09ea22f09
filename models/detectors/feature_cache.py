"""Features of frames seen before, for streaming evaluation.

Dimension letters: N cameras, C channels, h, w size of a feature map.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence

from torch import Tensor

from models.bounded_cache import BoundedCache

FrameFeatures = tuple[Tensor, ...]
"""Feature maps ``[N, C, h, w]`` of one frame, one per pyramid level."""


class FeatureCache(BoundedCache[FrameFeatures]):
    """Cache of the features of a number of frames.

    Args:
        max_frames: Frames to keep between calls.
    """

    def __init__(self, max_frames: int) -> None:
        super().__init__(max_frames)

    def fetch(
        self,
        keys: Sequence[Hashable],
        compute: Callable[[list[int]], Sequence[FrameFeatures]],
    ) -> list[FrameFeatures]:
        """Return the features of the frames with these keys.

        Args:
            keys: Identity of every frame.
            compute: Gives the features of the frames at some positions of ``keys``; called once,
                with one position of every key that is not cached, and not if all are.
        """
        missing = {key: i for i, key in enumerate(keys) if key not in self}
        computed = compute(list(missing.values())) if missing else ()
        frames = dict(zip(missing, computed, strict=True))
        # All are taken out before any is put in, which may drop others.
        frames |= {key: self[key] for key in keys if key not in missing}
        for key in keys:
            self.put(key, frames[key])
        return [frames[key] for key in keys]
