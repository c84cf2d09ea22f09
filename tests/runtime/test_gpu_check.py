"""`make gpu-check` on the CPU."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from models import ops
from scripts.gpu_checks import command, operations
from scripts.gpu_checks.operations import SIZES, largest_error, make_cases

ROOT = Path(__file__).parents[2]
# Hides packages from the import system, as on a machine with only torch.
WITHOUT = """
import sys

class Hidden:
    def __init__(self, finder):
        self.finder = finder
    def find_spec(self, name, *args):
        hidden = ("mmengine", "mmcv", "mmdet", "mmdet3d", "spconv", "pytest", "hypothesis")
        return None if name.split(".")[0] in hidden else self.finder.find_spec(name, *args)
    def __getattr__(self, name):
        return getattr(self.finder, name)

sys.meta_path[:] = [Hidden(finder) for finder in sys.meta_path]
from scripts.gpu_checks.command import main
sys.exit(main(sys.argv[1:]))
"""


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_it_says_one_sentence(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert command.main(["--out", str(tmp_path / "table.md")]) == 0
    assert capsys.readouterr().out.startswith("no GPU: nothing was checked")
    assert not list(tmp_path.iterdir())


def test_runs_with_only_torch(tmp_path: Path) -> None:
    """Run on the CPU in small sizes, without MMEngine, mmcv and pytest."""
    table = tmp_path / "table.md"
    options = ["--device", "cpu", "--sizes", "small", "--no-build", "--out", str(table)]
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT, *options], cwd=ROOT, capture_output=True, text=True,
        check=False, timeout=120, env=dict(os.environ, PYTHONPATH=str(ROOT)),
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    text = table.read_text()
    assert "MMEngine is not installed" in text
    names = [case.name for case in make_cases(SIZES["small"], "cpu")]
    for name in names:
        assert text.count(f"| {name} | ") == 2, name
    for precision in ("float32", "tf32", "bfloat16"):
        assert f"| decoder, {precision} | " in text
    assert text.count(" | ok |") == len(names) and "WRONG" not in text


def test_a_wrong_operation_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    right = ops.distance_attention
    monkeypatch.setattr(ops, "distance_attention", lambda *args: 1.01 * right(*args))
    table = command.Table(tmp_path / "table.md", minutes=1)
    assert not command.compare_operations(table, [], "cpu")
    wrong = [line for line in capsys.readouterr().out.splitlines() if line.endswith("WRONG |")]
    assert len(wrong) == 1 and "distance_attention" in wrong[0]


def test_time_that_is_up_ends_the_table(tmp_path: Path) -> None:
    table = command.Table(tmp_path / "table.md", minutes=0)
    assert command.compare_operations(table, ["small"], "cpu")
    command.time_decoder(table, ["small"], "cpu")
    assert (tmp_path / "table.md").read_text().count("The time limit is reached.") == 2


def test_error_is_relative_to_the_largest_number() -> None:
    case = operations.Case(
        "scaled", lambda x: 2.0 * x, lambda x: x * (2.0 + 2e-3), [torch.tensor([1.0, -50.0])], (0,)
    )
    assert largest_error(case) == pytest.approx(1e-3, rel=1e-2)


def test_unknown_sizes_are_named(capsys: pytest.CaptureFixture[str]) -> None:
    assert command.main(["--device", "cpu", "--sizes", "xl"]) == 2
    assert "--sizes names 'xl': use small, t or l" in capsys.readouterr().err
