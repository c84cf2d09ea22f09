"""Randomly damaged files of every kind are read, or rejected with an error of the project."""

from __future__ import annotations

from itertools import islice
from pathlib import Path

import numpy as np
import pytest

from models.errors import UserError
from scripts.fuzzing.corruption import DAMAGES, damaged, with_wrong_value
from scripts.fuzzing.files import ALLOWED, cases

NUM_CASES = 800
pytestmark = pytest.mark.filterwarnings("ignore")  # libraries warn about what they are given


@pytest.mark.parametrize("seed", [0, 1])
def test_nothing_but_the_projects_errors(seed):
    assert ALLOWED == (UserError,)
    refused, kinds = 0, set()
    for name, call in islice(cases(seed), NUM_CASES):
        kinds.add(name.split(",")[0])
        try:
            call()
        except UserError as error:
            refused += 1
            assert "\n" not in str(error) and ": " in str(error), name
        except Exception as error:
            raise AssertionError(name) from error
    # All kinds of files were drawn, and most damage shows.
    assert len(kinds) > 25 and refused > NUM_CASES / 2


def test_cases_repeat_with_the_seed_and_leave_nothing_behind():
    def first(seed):
        generator = cases(seed)
        drawn = [next(generator) for _ in range(60)]
        results = []
        for _, call in drawn:
            try:
                call()
                results.append("read")
            except UserError as error:
                results.append(type(error).__name__)
        folder = Path(generator.gi_frame.f_locals["folder"])
        assert folder.is_dir()
        generator.close()
        assert not folder.exists()
        return [name for name, _ in drawn], results

    assert first(3) == first(3)
    assert first(3) != first(4)


def test_undamaged_files_are_read():
    """The cases are rejected because of the damage."""
    from scripts.fuzzing import files

    targets = files._targets(np.random.default_rng(0))
    generator = files.cases(0)
    next(generator)  # writes all files
    root = Path(generator.gi_frame.f_locals["folder"])
    for name, target in targets.items():
        if "LiDAR" in name or name in ("BMP", "WEBP", "TIFF", "PNG", "JPEG"):
            continue  # these draw their settings: below
        assert target.read(root, np.random.default_rng(0)) is not None, name
    for name in ("PNG", "JPEG", "LiDAR of 5 columns", "LiDAR of 3 columns"):
        results = []
        for seed in range(30):
            try:
                results.append(targets[name].read(root, np.random.default_rng(seed)) is not None)
            except UserError:
                results.append(False)
        assert any(results), name
    generator.close()


def test_damage_changes_the_bytes():
    rng = np.random.default_rng(0)
    seen = set()
    for _ in range(300):
        name, data = damaged(bytes(range(100)), rng)
        seen.add(name)
        assert isinstance(data, bytes)
    assert seen == set(DAMAGES)
    content = {"a": [{"b": 1}, {"c": [2, 3]}]}
    changed = [with_wrong_value(content, rng, [None])[1] for _ in range(50)]
    assert all(other != content for other in changed)
    assert content == {"a": [{"b": 1}, {"c": [2, 3]}]}
