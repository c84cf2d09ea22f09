"""Cache of the feature maps of earlier frames for streaming evaluation.

Dimension letters: B batch, T frames of a sample (current first), n frames, S slots, N cameras,
L pyramid levels, C channels, h, w size of a feature map.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence

import torch
from torch import Tensor

from models.layers.channels import empty_channels_last

ComputeFrames = Callable[[list[int]], Sequence[Tensor]]


class FeatureCache:
    """Cache of the feature maps of recent frames, with one buffer per pyramid level.

    Samples are read in place: the buffer has S slots, and T neighbouring slots hold
    the sample, current frame first. The next sample of the scene has one new frame, which is
    written into the slot before these. When the first slot is reached, the frames that are still
    needed are copied to the end of the buffer. With S = 2T this copies less than one frame per
    sample. The maps are channels-last in memory.

    Args:
        max_frames: S. If it is smaller than T, or if a batch has several samples, frames are copied
            out of the buffer.
    """

    def __init__(self, max_frames: int) -> None:
        self.limit = max_frames
        self.clear()

    def __len__(self) -> int:
        """Return the number of cached frames."""
        return len(set(self._keys) - {None})

    def clear(self) -> None:
        """Drop all frames and free the memory."""
        self.forget()
        self._levels: list[Tensor] = []  # [S, N, C, h, w]

    def forget(self) -> None:
        """Drop all frames and keep the memory, whose addresses captured graphs may contain."""
        self._keys: list[Hashable | None] = [None] * self.limit
        self._used = [0] * self.limit  # number of the call that last used a slot
        self._calls = 0

    def missing(self, keys: Sequence[Hashable]) -> list[int]:
        """Return the first position of every key that is not cached, in ascending order."""
        kept = set(self._keys)
        first = {key: i for i, key in reversed(list(enumerate(keys))) if key not in kept}
        return sorted(first.values())

    @torch.no_grad()
    def fetch(self, keys: Sequence[Sequence[Hashable]], compute: ComputeFrames) -> list[Tensor]:
        """Return the features of the frames with these keys.

        Args:
            keys: T keys for each of the B samples.
            compute: Returns L maps `[n, N, C, h, w]` for n positions among the B*T keys. It is
                called once with `missing`, or not at all if all frames are cached.

        Returns:
            L maps `[B, T, N, C, h, w]`. Maps of a single sample may be views of the buffer, which
            are valid until the next call.
        """
        flat = [key for sample in keys for key in sample]
        missing = self.missing(flat)
        new = list(compute(missing)) if missing else []
        index_of_new = {flat[position]: i for i, position in enumerate(missing)}
        if new:
            self._allocate(new, everything=len(missing) == len(set(flat)))
        self._calls += 1
        if len(keys) == 1 and len(flat) <= self.limit:
            return self._window(flat, new, index_of_new)
        copies = self._copies(flat, new, index_of_new)
        self._keep(flat, new, index_of_new)
        return [level.unflatten(0, (len(keys), -1)) for level in copies]

    def _allocate(self, new: Sequence[Tensor], everything: bool) -> None:
        """Allocate the buffers, again if the maps have changed in size, dtype or device."""

        def kind(level: Tensor) -> tuple:
            return level.shape[1:], level.dtype, level.device

        if self._levels and list(map(kind, self._levels)) != list(map(kind, new)):
            if not everything:
                raise RuntimeError(
                    "cached features differ from new ones in size, dtype or device: call clear()"
                )
            calls = self._calls
            self.clear()
            self._calls = calls
        if not self._levels:
            with torch.inference_mode(False):  # so that they can be written outside of that mode
                self._levels = [
                    empty_channels_last((self.limit, *level.shape[1:]), level) for level in new
                ]

    def _window(
        self, keys: Sequence[Hashable], new: Sequence[Tensor], index_of_new: dict[Hashable, int]
    ) -> list[Tensor]:
        """Write a sample into neighbouring slots and return their maps, `[1, T, N, C, h, w]`."""
        start = self._best_start(keys)
        slots = {
            start + i: key for i, key in enumerate(keys) if self._keys[start + i] != key
        }  # to be written
        slot_of = {key: i for i, key in enumerate(self._keys) if key is not None}
        for level_index, level in enumerate(self._levels):
            sources = {
                slot: new[level_index][index_of_new[key]]
                if key in index_of_new
                else level[slot_of[key]]
                for slot, key in slots.items()
            }
            for slot, key in slots.items():
                if key not in index_of_new and slot_of[key] in slots:  # overwritten before read
                    sources[slot] = sources[slot].clone()
            for slot, source in sources.items():
                level[slot].copy_(source)
        end = start + len(keys)
        self._keys[start:end] = keys
        self._used[start:end] = [self._calls] * len(keys)
        return [level[start:end].unsqueeze(0) for level in self._levels]

    def _best_start(self, keys: Sequence[Hashable]) -> int:
        """Return the start of the window that needs the fewest writes, into the oldest slots."""

        def cost(start: int) -> tuple[int, int, int]:
            ages = [
                self._used[start + i] for i, key in enumerate(keys) if self._keys[start + i] != key
            ]
            return len(ages), max(ages, default=0), -start

        return min(range(self.limit - len(keys) + 1), key=cost)

    def _copies(
        self, keys: Sequence[Hashable], new: Sequence[Tensor], index_of_new: dict[Hashable, int]
    ) -> list[Tensor]:
        """Return copies of frames, `[B*T, N, C, h, w]`."""
        slot_of = {key: i for i, key in enumerate(self._keys)}
        levels = new or self._levels
        copies = [empty_channels_last((len(keys), *level.shape[1:]), level) for level in levels]
        for level_index, copy in enumerate(copies):
            for frame, key in zip(copy, keys, strict=True):
                if key in index_of_new:
                    frame.copy_(new[level_index][index_of_new[key]])
                else:
                    frame.copy_(self._levels[level_index][slot_of[key]])
        return copies

    def _keep(
        self, keys: Sequence[Hashable], new: Sequence[Tensor], index_of_new: dict[Hashable, int]
    ) -> None:
        """Keep the last of some frames, as many as fit, in the slots unused for longest."""
        wanted = list(dict.fromkeys(reversed(keys)))[: self.limit]
        slot_of = {key: i for i, key in enumerate(self._keys)}
        for key in wanted:
            if key in slot_of:
                self._used[slot_of[key]] = self._calls
        for key in wanted:
            if key in slot_of:
                continue
            slot = min(range(self.limit), key=self._used.__getitem__)
            for level, frames in zip(self._levels, new, strict=True):
                level[slot].copy_(frames[index_of_new[key]])
            self._keys[slot], self._used[slot] = key, self._calls
