"""A short drill: trainings that are disturbed at random end as undisturbed ones."""

from __future__ import annotations

from pathlib import Path

from scripts.drills.drill import run_drill


def test_a_short_drill(tmp_path: Path) -> None:
    result = run_drill(tmp_path, kills=2, processes=1, model="nano", epochs=2, seed=5)
    assert result.number == 2 and result.runs >= 1
    assert result.is_good, (result.table(), result.failures)
