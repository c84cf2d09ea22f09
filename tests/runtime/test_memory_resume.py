"""Trainings on sequences: query memory with interruptions and several processes."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import Any

import jobs
import pytest
from memory_parts import LENGTHS, memory_config

from tests.runtime.test_exact_resume import assert_same, state_of, steps

ROOT = Path(__file__).resolve().parents[2]
SCENE_OF = [scene for scene, n in enumerate(LENGTHS) for _ in range(n)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("memory")


def assert_same_end(whole: Path, parts: Path) -> dict[str, Any]:
    first, second = state_of(whole), state_of(parts)
    for key in ("state_dict", "optimizer", "random_states", "place", "memory"):
        assert_same(first[key], second[key], key)
    return first


def test_a_training_on_sequences_is_resumed_exactly(folder: Path) -> None:
    config = memory_config(folder, ROOT)
    runs = [folder / part for part in ("whole", "parts")]
    code, text = jobs.train(config, runs[0])
    assert code == 0, text[-3000:]
    signals = dict(NANO_SIGNAL="SIGTERM")
    assert jobs.train(config, runs[1], NANO_AT="before8", **signals)[0] == 130  # within a scene
    (remembered,) = state_of(runs[1])["memory"]
    stored = [(entry["sequence"], entry["index"]) for entry in remembered]
    code, text = jobs.train(config, runs[1], "--resume")
    assert code == 0, text[-3000:]
    end = assert_same_end(*runs)
    assert steps(runs[0]) == steps(runs[1])
    # The first epoch had single frames; the second and the third left what they saw last.
    assert {sequence[0] for sequence, _ in stored} == {1}
    assert {entry["sequence"][0] for entry in end["memory"][0]} == {1, 2}
    done = steps(runs[0])
    followed = [done[i][1:] for i in range(12, 18)]  # samples of the last epoch's steps
    for place in zip(*followed, strict=True):
        pairs = list(pairwise(int(sample) for sample in place))
        within = [(a, b) for a, b in pairs if SCENE_OF[a] == SCENE_OF[b]]
        assert within and all(b == a + 1 for a, b in within)


@pytest.mark.slow
def test_each_process_goes_on_with_what_it_remembered(folder: Path) -> None:
    config = memory_config(folder, ROOT, single=0)
    runs = [folder / part for part in ("whole2", "parts2")]

    def train(run: Path, *options: str, **environment: str) -> list[int]:
        group = jobs.start_group(2, config, run, *options, **environment)
        return [job.wait(120) for job in group]

    assert train(runs[0]) == [0, 0]
    train(runs[1], NANO_SIGNAL="SIGTERM", NANO_AT="before9")
    assert train(runs[1], "--resume") == [0, 0]
    assert_same_end(*runs)
