"""The cache of frames: results, kept frames and copies."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from models.detectors.feature_cache import FeatureCache
from models.layers.channels import is_channels_last

SIZES = ((3, 4), (2, 2))  # of two levels


def features(key: int) -> list[Tensor]:
    """Return maps [1, N, C, h, w] that encode frame, camera and position."""
    return [
        key + torch.arange(2 * 5 * h * w).view(1, 2, 5, h, w) / 1000 + 100 * level
        for level, (h, w) in enumerate(SIZES)
    ]


def computing(keys: Sequence[int], computed: list[int]) -> Callable[[list[int]], list[Tensor]]:
    def compute(positions: list[int]) -> list[Tensor]:
        computed.extend(keys[i] for i in positions)
        frames = [features(keys[i]) for i in positions]
        return [torch.cat(level) for level in zip(*frames, strict=True)]

    return compute


def fetch(cache: FeatureCache, *samples: Sequence[int]) -> list[int]:
    """Fetch samples, compare them with the frames, and return the computed frames."""
    computed: list[int] = []
    flat = [key for sample in samples for key in sample]
    maps = cache.fetch(samples, computing(flat, computed))
    for level, found in enumerate(maps):
        expected = torch.stack([torch.cat([features(k)[level] for k in s]) for s in samples])
        assert torch.equal(found, expected)
        assert is_channels_last(found)
    return computed


def drive(length: int, frames: int) -> list[list[int]]:
    """Return the samples of a scene; its first frame replaces missing history."""
    return [[max(0, i - t) for t in range(frames)] for i in range(length)]


def test_each_frame_of_a_drive_is_computed_once_and_read_in_place() -> None:
    cache, buffers = FeatureCache(8), []
    for i, keys in enumerate(drive(30, 4)):
        assert fetch(cache, keys) == [i]
        maps = cache.fetch([keys], computing(keys, []))
        buffers.append({level.untyped_storage().data_ptr() for level in maps})
        assert len(cache) <= cache.limit == 8
    assert all(used == buffers[0] for used in buffers)


def test_a_drive_copies_less_than_a_frame_a_sample(monkeypatch: pytest.MonkeyPatch) -> None:
    cache, written = FeatureCache(16), []
    copy = Tensor.copy_
    samples = drive(100, 8)
    fetch(cache, samples[0])
    monkeypatch.setattr(Tensor, "copy_", lambda a, b: (written.append(1), copy(a, b))[1])
    for keys in samples[1:]:
        cache.fetch([keys], computing(keys, []))
    assert len(written) / len(SIZES) / 99 < 2  # the new frame, and less than one of the others


def test_forgotten_frames_are_computed_again_into_the_same_memory() -> None:
    cache = FeatureCache(4)
    before = cache.fetch([[1, 0]], computing([1, 0], []))
    cache.forget()
    assert len(cache) == 0
    computed: list[int] = []
    after = cache.fetch([[1, 0]], computing([1, 0], computed))
    assert computed == [1, 0]
    assert [x.data_ptr() for x in after] == [x.data_ptr() for x in before]


def test_the_oldest_frames_are_dropped() -> None:
    cache = FeatureCache(3)
    assert fetch(cache, [1, 2, 2]) == [1, 2]
    assert fetch(cache, [3], [1]) == [3] and len(cache) == 3
    assert fetch(cache, [4], [1]) == [4] and len(cache) == 3  # 2 goes: used longest ago
    assert fetch(cache, [3], [1]) == []
    assert fetch(cache, [2]) == [2]
    assert fetch(cache, [5, 6, 7, 8]) == [5, 6, 7, 8] and len(cache) == 3  # more than fits
    cache.clear()
    assert len(cache) == 0 and fetch(cache, [8]) == [8]


@given(
    limit=st.integers(1, 9),
    frames=st.integers(1, 4),
    calls=st.lists(st.lists(st.lists(st.integers(0, 9), min_size=4, max_size=4), min_size=1,
                            max_size=2), max_size=8),
)  # fmt: skip
def test_any_order_gives_the_frames_that_were_asked_for(
    limit: int, frames: int, calls: list[list[list[int]]]
) -> None:
    cache = FeatureCache(limit)
    for samples in calls:
        wanted = [keys[:frames] for keys in samples]
        before = cache.missing(flat := [key for keys in wanted for key in keys])
        assert fetch(cache, *wanted) == [flat[i] for i in before]
        assert len(cache) <= limit


def test_maps_of_another_size_take_the_place_of_all_others() -> None:
    cache = FeatureCache(4)
    fetch(cache, [1, 2])
    with pytest.raises(RuntimeError, match="call clear"):
        cache.fetch([[1, 3]], lambda _: [torch.zeros(1, 2, 5, 1, 1)] * 2)
    (first, _) = cache.fetch([[4, 3]], lambda _: [torch.ones(2, 2, 5, 1, 1)] * 2)
    assert first.shape == (1, 2, 2, 5, 1, 1) and len(cache) == 2


def test_a_cache_filled_in_inference_mode_can_be_written_outside() -> None:
    cache = FeatureCache(4)
    with torch.inference_mode():
        fetch(cache, [1, 2])
    assert fetch(cache, [3, 1]) == [3]
