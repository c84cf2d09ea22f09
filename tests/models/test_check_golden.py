"""The command that compares this code with reference numbers."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).parents[2]
GOLDEN = ROOT / "tests" / "golden"


def check_golden(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, ROOT / "scripts" / "check_golden.py", *arguments]
    environment = dict(os.environ, OMP_NUM_THREADS="1")
    return subprocess.run(command, capture_output=True, text=True, timeout=300, env=environment)


@pytest.mark.parametrize("name", ["opusv2_head", "opusv2_dcd_head", "occ_metrics", "geometry"])
def test_reference_numbers(name: str) -> None:
    done = check_golden(GOLDEN / f"{name}.npz")
    assert done.returncode == 0, done.stdout + done.stderr
    with np.load(GOLDEN / f"{name}.npz") as archive:
        results = [k for k in archive.files if k.startswith(("eval/", "occ/", "loss/", "grad"))]
    for key in results if name.startswith("opus") else []:  # nothing in a file is left out
        assert f"plain {key} " in done.stdout and f"native {key} " in done.stdout, key


@pytest.mark.parametrize("name", ["opusv2_head", "opusv2_dcd_head"])
def test_reference_numbers_in_single_precision(name: str) -> None:
    done = check_golden(GOLDEN / f"{name}.npz", "--dtype", "float32")
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize(
    ("name", "key"),
    [
        ("opusv2_head", "loss/d0.loss_pts"),
        ("opusv2_head", "gradnorm/densifiers.0.cls_branch.0.bias"),
        ("geometry", "ida/2.matrix"),
    ],
)
def test_changed_number_fails(name: str, key: str, tmp_path: Path) -> None:
    arrays = dict(np.load(GOLDEN / f"{name}.npz"))
    arrays[key] = arrays[key] * 1.001
    np.savez(tmp_path / "changed.npz", **arrays)
    done = check_golden(tmp_path / "changed.npz")
    assert done.returncode == 1
    failed = {line.split()[-4] for line in done.stdout.splitlines() if line.endswith("FAILED")}
    assert failed == {key}


def test_missing_and_unknown_files_are_named_and_fail(tmp_path: Path) -> None:
    np.savez(tmp_path / "other.npz", something=np.zeros(3))
    (tmp_path / "broken.npz").write_bytes(b"PK not really")
    arrays = dict(np.load(GOLDEN / "opusv2_head.npz"))
    config = arrays["meta/config"].tobytes().replace(b'"kind": "v2"', b'"kind": "v9"')
    arrays["meta/config"] = np.frombuffer(config, np.uint8)
    np.savez(tmp_path / "kind.npz", **arrays)
    for name, sentence in (
        ("other", "not supported: neither a head's file nor"),
        ("broken", "not supported: not a readable .npz file"),
        ("nowhere", "not supported: not a readable .npz file"),
        ("kind", "not supported: heads of the kind 'v9' are not supported"),
    ):
        done = check_golden(tmp_path / f"{name}.npz", GOLDEN / "geometry.npz")
        assert done.returncode == 1
        assert sentence in done.stdout
        assert "21 of 21 quantities ok" in done.stdout  # the other file is still checked
        assert "Traceback" not in done.stderr
