"""A short drill: randomly disturbed trainings equal undisturbed ones."""

from __future__ import annotations

import random
import signal
import time
from pathlib import Path

import pytest

from scripts.drills.drill import _Drill, run_drill
from scripts.drills.jobs import Training, record_of
from scripts.drills.memory import drift_table, measure_drift
from scripts.drills.parts import GRACE, SLOW, write_config


def test_a_short_drill(tmp_path: Path) -> None:
    result = run_drill(tmp_path, kills=2, processes=1, model="nano", epochs=2, seed=5)
    assert result.number == 2 and result.runs >= 1
    assert result.is_good, (result.table(), result.failures)


def test_a_checkpoint_is_damaged_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    drill = _Drill(tmp_path, 1, "nano", 1, random.Random(0))
    monkeypatch.setattr(drill, "_kill_all", lambda work_dir: (None, True))
    whole = bytes(range(100))
    (tmp_path / "epoch_1.pth").write_bytes(whole)
    contents = []
    for _ in range(20):
        assert drill._damage(tmp_path)[1]
        contents.append((tmp_path / "epoch_1.pth").read_bytes())
    assert contents[0] != whole and contents[-1] == b""  # an empty file stays


def test_a_sample_that_one_of_two_processes_waits_for(tmp_path: Path) -> None:
    """After a signal both processes end, and the run resumes its checkpoint."""
    config, work_dir = write_config(tmp_path, "nano", 2), tmp_path / "run"
    slow = Training(config, work_dir, 2, {SLOW: "7", GRACE: "1"})
    end = time.monotonic() + 60
    while not (all(_steps(work_dir, rank) for rank in range(2)) and _is_idle(work_dir)):
        assert slow.is_running and time.monotonic() < end
        time.sleep(0.1)
    slow.send(signal.SIGTERM)
    codes = slow.wait(30)
    slow.end()
    assert sorted(map(str, codes)) == ["130", "2"], codes
    waited = slow.output(codes.index(130)).read_text()
    assert "still waited for a sample 1 s after the signal; the last checkpoint is kept" in waited
    assert "Traceback" not in waited
    whole = Training(config, work_dir, 2, {})
    assert whole.wait(120) == [0, 0], whole.output(0).read_text()[-3000:]


def _steps(work_dir: Path, rank: int) -> str:
    path = record_of(work_dir, rank)
    return path.read_text() if path.exists() else ""


def _is_idle(work_dir: Path) -> bool:
    """Return whether no process has started an iteration for a second."""
    times = [record_of(work_dir, rank).stat().st_mtime for rank in range(2)]
    return time.time() - max(times) > 1


def test_resident_memory_is_measured(tmp_path: Path) -> None:
    """Measure a short run; `--memory 1000` measures a thousand steps and samples."""
    drifts = measure_drift(tmp_path, model="nano", steps=40)
    assert [(drift.phase, drift.number) for drift in drifts] == [("train", 40), ("val", 40)]
    for drift in drifts:
        assert 1e8 < drift.warm < 4e9 and drift.share < 0.05, drift_table(drifts)
