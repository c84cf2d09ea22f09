"""Training and prediction on a device other than the CPU; see second_device.py."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


# Number of times that the host waits, see docs/kernels.md. A LiDAR model also waits for the numbers
# of voxels of its encoder; the numbers of points and labels arrive with them.
WAITS = {
    "v1": (2, 1, 1),
    "v2": (2, 2, 1),
    "v2_density_aware": (2, 2, 1),
    "v2_auxiliary": (2, 2, 1),
    "v2_losses": (6, 2, 1),  # both losses wait once for each of the two layers
    "v2_seen": (2, 2, 1),
    "v1_fusion": (2, 2, 2),
    "v2_fusion": (3, 3, 2),
}


@pytest.fixture(scope="module")
def told() -> str:
    """Return the output of the comparison of all detectors, run in a separate process."""
    done = subprocess.run(
        [sys.executable, "-m", "tests.models.second_device"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
        timeout=600,
    )
    assert done.returncode == 0, done.stdout + done.stderr[-3000:]
    return done.stdout


@pytest.mark.parametrize("kind", WAITS)
def test_every_kind_trains_and_predicts_there(kind: str, told: str) -> None:
    found = re.search(rf"^{kind}: (\d+) tensors are equal", told, re.MULTILINE)
    assert found and int(found.group(1)) > 200, told


@pytest.mark.parametrize("kind", WAITS)
def test_host_rarely_waits(kind: str, told: str) -> None:
    """The host waits for voxels of layers and labels, the logged norm, and results."""
    found = re.search(
        rf"^{kind}: .* waits: (\d+) in training, (\d+) in first prediction, (\d+) in prediction",
        told,
        re.MULTILINE,
    )
    assert found and tuple(map(int, found.groups())) == WAITS[kind], told


def test_documented_waits_are_these() -> None:
    text = (ROOT / "docs" / "kernels.md").read_text()
    names = dict(v1="OPUS", v2="OPUS-V2", v1_fusion="OPUS-Fusion", v2_fusion="OPUS-V2-Fusion")
    for kind, name in names.items():
        row = re.search(rf"^\| {name} \| (\d) \| (\d) \| (\d) \|$", text, re.MULTILINE)
        assert row and tuple(map(int, row.groups())) == WAITS[kind], name
