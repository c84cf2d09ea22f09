"""Choice of the frames of a sample."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from loaders.datasets.frames import MAX_HISTORY, build_frame_table, history_offsets
from loaders.errors import BadDataError

CAMS = ("A", "B")


def offsets(available, num_frames, seed=None, **kwargs):
    rng = None if seed is None else np.random.default_rng(seed)
    return history_offsets(available, num_frames, rng, **kwargs)


def test_evaluation_takes_every_sixth_entry():
    # Entry 5, 11, 17 ... of the history, counted from 0, is offset 6, 12, 18 ....
    assert offsets(100, 8) == [0, 6, 12, 18, 24, 30, 36, 42]


def test_evaluation_clamps_to_the_oldest():
    assert offsets(20, 8) == [0, 6, 12, 18, 20, 20, 20, 20]
    assert offsets(1, 3) == [0, 1, 1]


def test_no_history_repeats_the_current_frame():
    assert offsets(0, 4) == [0, 0, 0, 0]
    assert offsets(0, 4, seed=0) == [0, 0, 0, 0]


def test_single_frame():
    assert offsets(50, 1) == [0]
    assert offsets(50, 1, seed=0) == [0]


def test_history_ends_after_150_frames():
    assert max(offsets(10_000, 60)) == MAX_HISTORY == 150
    assert offsets(10_000, 3, test_interval=100) == [0, 100, 150]


def test_training_draws_intervals_from_4_to_8():
    seen = {tuple(np.diff(offsets(100, 8, seed=seed))) for seed in range(60)}
    assert seen == {(k,) * 7 for k in (4, 5, 6, 7, 8)}


@pytest.mark.parametrize(
    ("available", "intervals"),
    [(35, {4, 5}), (28, {4}), (27, {3}), (13, {1}), (7, {1})],
)
def test_short_history_lowers_the_interval(available, intervals):
    seen = {tuple(np.diff(offsets(available, 8, seed=seed))) for seed in range(40)}
    assert seen == {(k,) * 7 for k in intervals}


def test_fewer_frames_than_wanted_repeat_the_oldest():
    assert offsets(3, 8, seed=0) == [0, 1, 2, 3, 3, 3, 3, 3]


@given(st.integers(0, 400), st.integers(1, 16), st.none() | st.integers(0, 99))
def test_offsets_are_possible(available, num_frames, seed):
    got = offsets(available, num_frames, seed)
    assert len(got) == num_frames
    assert got[0] == 0
    assert all(a <= b for a, b in itertools.pairwise(got))
    assert max(got) <= min(available, MAX_HISTORY)
    assert available == 0 or num_frames == 1 or got[1] >= 1


def cam(name):
    return {
        "data_path": name,
        "timestamp": 5,
        "cam_intrinsic": np.eye(3),
        "sensor2global_rotation": np.arange(9.0).reshape(3, 3),
        "sensor2global_translation": [1, 2, 3],
    }


def info(name, scene, time, sweeps):
    return {
        "token": name,
        "scene_token": scene,
        "timestamp": time,
        "cams": {c: cam(f"{name}{c}") for c in CAMS},
        "cam_sweeps": [{c: cam(f"{name}{s}{c}") for c in CAMS} for s in sweeps],
    }


def rows(table, first, last):
    return [path.decode() for path in table.paths[first : last + 1, 0]]


def test_history_runs_through_sweeps_and_key_frames_of_the_scene_only():
    infos = [
        info("a", "s", 0, []),
        info("b", "s", 10, ["9", "8"]),
        info("x", "t", 20, []),
        info("y", "t", 30, ["29"]),
    ]
    table = build_frame_table(infos, CAMS)
    assert [table.available_history(i) for i in range(4)] == [0, 3, 0, 2]
    k = table.key_frame
    assert rows(table, k[1] - 3, k[1]) == ["aA", "b8A", "b9A", "bA"]
    assert rows(table, k[3] - 2, k[3]) == ["xA", "y29A", "yA"]
    assert [list(s) for s in table.scene_samples] == [[0, 1], [0, 1], [2, 3], [2, 3]]


def test_samples_of_a_scene_may_stand_apart_and_out_of_order():
    infos = [info("b", "s", 10, ["9"]), info("x", "t", 0, []), info("a", "s", 0, [])]
    table = build_frame_table(infos, CAMS)
    assert [table.available_history(i) for i in range(3)] == [2, 0, 0]
    assert rows(table, table.key_frame[0] - 2, table.key_frame[0]) == ["aA", "b9A", "bA"]
    assert list(table.scene_samples[0]) == [2, 0]


def test_incomplete_sweep_repeats_the_one_before():
    one = info("b", "s", 10, ["9", "8", "7"])
    del one["cam_sweeps"][0]["B"]
    del one["cam_sweeps"][2]["A"]
    table = build_frame_table([info("a", "s", 0, []), one], CAMS)
    k = table.key_frame[1]
    # Newest first: key, (9 repeats the key), 8, (7 repeats 8), older key.
    assert rows(table, k - 4, k) == ["aA", "b8A", "b8A", "bA", "bA"]


def test_rotation_is_stored_transposed():
    table = build_frame_table([info("a", "s", 0, [])], CAMS)
    np.testing.assert_array_equal(
        table.sensor2global_rotation[0, 0], np.arange(9.0).reshape(3, 3).T
    )


def test_errors_name_what_is_wrong():
    broken = info("a", "s", 0, [])
    del broken["cams"]["B"]
    with pytest.raises(BadDataError, match="key frame a has no camera B"):
        build_frame_table([broken], CAMS)
