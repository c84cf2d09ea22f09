"""Choice of past frames, against the data set's rule and a search over all frames."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
from hypothesis import given
from hypothesis import strategies as st

from loaders.datasets.frames import history_offsets
from scripts.prediction.history import History, Interval
from scripts.runtime.errors import ConfigError


@dataclass(frozen=True)
class Shot:
    time_us: int


def chosen(times_us: list[int], num_frames: int, interval: Interval) -> list[list[int]]:
    """Return the times of the frames of each prediction."""
    history: History[Shot] = History(num_frames, interval)
    found = []
    for time_us in times_us:
        found.append([shot.time_us for shot in history.choose(Shot(time_us))])
        history.add(Shot(time_us))
    return found


@pytest.mark.parametrize("rule", ["time", "count"])
@pytest.mark.parametrize("interval_frames", [1, 2, 6])
def test_at_the_rate_of_the_data_set_both_rules_are_its_own(
    rule: str, interval_frames: int
) -> None:
    times = [round(i * 1e6 / 12) for i in range(60)]
    interval = Interval(interval_frames, interval_frames / 12, rule)  # type: ignore[arg-type]
    for i, found in enumerate(chosen(times, 8, interval)):
        offsets = history_offsets(i, 8, None, test_interval=interval_frames)
        assert found == [times[i - offset] for offset in offsets]


def test_frames_at_ten_hertz_are_half_a_second_apart() -> None:
    times = [100_000 * i for i in range(50)]
    found = chosen(times, 4, Interval(6, 0.5))
    assert found[-1] == [4_900_000, 4_400_000, 3_900_000, 3_400_000]
    assert found[7] == [700_000, 200_000, 0, 0]  # beyond the oldest frame the oldest
    assert found[0] == [0, 0, 0, 0]


def test_after_a_long_gap_the_past_is_gone() -> None:
    found = chosen([0, 500_000, 60_000_000, 60_500_000], 3, Interval(6, 0.5))
    assert found[2] == [60_000_000] * 3
    assert found[3] == [60_500_000, 60_000_000, 60_000_000]


@given(st.lists(st.integers(1, 300_000), min_size=1, max_size=80), st.integers(2, 5))
def test_the_nearest_frames_are_chosen_of_an_irregular_stream(
    steps: list[int], num_frames: int
) -> None:
    """No dropped frame of the stream would have been much nearer."""
    times = [sum(steps[: i + 1]) for i in range(len(steps))]
    step_us, thinning = 500_000, 500_000 / 12
    for i, found in enumerate(chosen(times, num_frames, Interval(6, 0.5))):
        assert found[0] == times[i] and found == sorted(found, reverse=True)
        reach = [t for t in times[:i] if times[i] - t <= (num_frames - 0.5) * step_us]
        if not reach:
            assert set(found) == {times[i]}
            continue
        for k, time_us in enumerate(found[1:], start=1):
            wanted = times[i] - k * step_us
            best = min(abs(t - wanted) for t in reach)
            assert time_us in reach
            assert abs(time_us - wanted) <= best + thinning


@pytest.mark.parametrize("rule", ["time", "count"])
def test_memory_is_bounded_at_any_rate(rule: str) -> None:
    history: History[Shot] = History(8, Interval(6, 0.5, rule))  # type: ignore[arg-type]
    for i in range(20_000):
        history.add(Shot(1000 * i))
        assert len(history) <= (86 if rule == "time" else 42)
    assert len(history.choose(Shot(20_000_000))) == 8


def test_unusable_intervals_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"interval_s is 0\.0"):
        Interval(6, 0.0)
    with pytest.raises(ConfigError, match="'time' or 'count'"):
        Interval(6, 0.5, "all")  # type: ignore[arg-type]
