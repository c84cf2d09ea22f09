"""Command that compares the code with reference numbers."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from scripts.golden import command as check_golden

ROOT = Path(__file__).parents[2]
GOLDEN = ROOT / "tests" / "golden"
HEADS = ["opusv1_head", "opusv1_fusion_head", "opusv2_head", "opusv2_dcd_head"]

RESULTS = ("eval/", "occ/", "loss/", "grad/", "gradnorm/")


@pytest.fixture
def check(capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str]]:
    """Run the command in this process and return its exit code and what it printed."""

    def run(*arguments: str | Path) -> tuple[int, str]:
        code = check_golden.main([str(argument) for argument in arguments])
        return code, capsys.readouterr().out

    return run


@pytest.mark.parametrize("name", [*HEADS, "occ_metrics", "geometry"])
def test_reference_numbers(name: str, check: Callable[..., tuple[int, str]]) -> None:
    code, printed = check(GOLDEN / f"{name}.npz")
    assert code == 0, printed
    with np.load(GOLDEN / f"{name}.npz") as archive:
        results = [key for key in archive.files if key.startswith(RESULTS)]
    assert bool(results) == name.startswith("opus")
    for key in results:  # nothing in a head's file is left out
        assert f"plain {key} " in printed and f"native {key} " in printed, key


@pytest.mark.parametrize("name", HEADS)
def test_reference_numbers_in_single_precision(
    name: str, check: Callable[..., tuple[int, str]]
) -> None:
    code, printed = check(GOLDEN / f"{name}.npz", "--dtype", "float32")
    assert code == 0, printed


@pytest.mark.parametrize("precision", ["tf32", "bfloat16"])
@pytest.mark.parametrize("name", ["opusv1_fusion_head", "opusv2_head"])
def test_reference_numbers_with_rounded_factors(
    name: str, precision: str, check: Callable[..., tuple[int, str]]
) -> None:
    code, printed = check(GOLDEN / f"{name}.npz", "--dtype", precision)
    assert code == 0, printed
    _, exact = check(GOLDEN / f"{name}.npz", "--dtype", "float32")
    key = "native eval/refine_pts.1"
    errors = [
        float(next(line for line in text.splitlines() if key in line).split()[2])
        for text in (printed, exact)
    ]
    assert errors[0] > 30 * errors[1]  # factors have been rounded


@pytest.mark.parametrize(
    ("name", "key"),
    [
        ("opusv1_head", "eval/cls_scores.0"),
        ("opusv2_head", "loss/d0.loss_pts"),
        ("opusv2_head", "gradnorm/densifiers.0.cls_branch.0.bias"),
        ("opusv2_head", "grad/mlvl_feats.1"),
        ("geometry", "ida/2.matrix"),
    ],
)
def test_changed_number_fails(
    name: str, key: str, tmp_path: Path, check: Callable[..., tuple[int, str]]
) -> None:
    arrays = dict(np.load(GOLDEN / f"{name}.npz"))
    arrays[key] = arrays[key] * 1.001
    np.savez(tmp_path / "changed.npz", **arrays)
    code, printed = check(tmp_path / "changed.npz")
    assert code == 1
    failed = {line.split()[-4] for line in printed.splitlines() if line.endswith("FAILED")}
    assert failed == {key}


def test_missing_and_unknown_files_are_named_and_fail(
    tmp_path: Path, check: Callable[..., tuple[int, str]]
) -> None:
    np.savez(tmp_path / "other.npz", something=np.zeros(3))
    (tmp_path / "broken.npz").write_bytes(b"PK not really")
    arrays = dict(np.load(GOLDEN / "opusv2_head.npz"))
    config = arrays["meta/config"].tobytes().replace(b'"kind": "v2"', b'"kind": "v9"')
    arrays["meta/config"] = np.frombuffer(config, np.uint8)
    np.savez(tmp_path / "kind.npz", **arrays)
    for name, sentence in (
        ("other", "not supported: it contains neither a head nor"),
        ("broken", "not supported: not a readable .npz file"),
        ("nowhere", "not supported: not a readable .npz file"),
        ("kind", "not supported: heads of the kind 'v9' are not supported"),
    ):
        code, printed = check(tmp_path / f"{name}.npz", GOLDEN / "geometry.npz")
        assert code == 1
        assert sentence in printed
        assert "21 of 21 quantities ok" in printed  # the other file is still checked


def test_command_line(tmp_path: Path) -> None:
    """The file runs from any folder and returns its result as the exit code."""
    for path, code in ((GOLDEN / "geometry.npz", 0), (tmp_path / "nowhere.npz", 1)):
        command = [sys.executable, str(ROOT / "scripts" / "check_golden.py"), str(path)]
        done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
        assert done.returncode == code, done.stdout + done.stderr
        assert done.stdout.startswith(f"{path}\n") and "Traceback" not in done.stderr
