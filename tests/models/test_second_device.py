"""Training and prediction on a device other than the CPU; see second_device.py."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def told() -> str:
    """What the comparison of all kinds of detectors says; it takes a process of its own."""
    done = subprocess.run(
        [sys.executable, "-m", "tests.models.second_device"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    assert done.returncode == 0, done.stdout + done.stderr[-3000:]
    return done.stdout


@pytest.mark.parametrize(
    "kind", ["v1", "v2", "v2_density_aware", "v2_auxiliary", "v1_fusion", "v2_fusion"]
)
def test_every_kind_trains_and_predicts_there(kind: str, told: str) -> None:
    found = re.search(rf"^{kind}: (\d+) tensors are equal", told, re.MULTILINE)
    assert found and int(found.group(1)) > 200, told


def test_host_rarely_waits(told: str) -> None:
    """Voxels of two layers, those of the labels, the norm to be logged."""
    assert "v2: " in told
    training, prediction = re.search(
        r"^v2: .* waits: (\d+) in training, (\d+) in prediction", told, re.MULTILINE
    ).groups()  # type: ignore[union-attr]
    assert int(training) <= 4
    # voxels of the last layer, what is above the threshold, and which sample that belongs to
    assert int(prediction) <= 1 + 3 + 2 * 3
