from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from models.ops import _extension

ROOT = Path(__file__).resolve().parents[2]


def run_python(code: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr


def test_import_needs_torch_alone_and_loads_nothing() -> None:
    run_python(
        "import sys, models.ops\n"
        "assert not {'mmengine', 'mmcv', 'mmdet', 'scipy', 'spconv'} & set(sys.modules)\n"
        "assert 'models/ops/_C' not in open('/proc/self/maps').read()\n"
    )


def test_operations_run_on_torchs_threads() -> None:
    run_python(
        "import os, torch\n"
        "torch.set_num_threads(2)\n"
        "from models.ops import nearest_neighbor\n"
        "points = torch.rand(20000, 3)\n"
        "before = len(os.listdir('/proc/self/task'))\n"
        "nearest_neighbor(points, points)\n"
        "assert len(os.listdir('/proc/self/task')) == before + 1\n"
        "maps = open('/proc/self/maps').read().split()\n"
        "assert len({word for word in maps if 'libgomp' in word}) == 1\n"
    )


def test_missing_library_says_how_to_build(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_extension, "_loaded", False)
    monkeypatch.setattr(_extension, "library_path", lambda: None)
    with pytest.raises(_extension.ExtensionError, match=r"missing: build it with `make setup`"):
        _extension.native("ray_cast")
    assert not _extension.is_available()


def test_unloadable_library_says_how_to_build(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    broken = tmp_path / "_C.so"
    broken.write_bytes(b"not a library")
    monkeypatch.setattr(_extension, "_loaded", False)
    monkeypatch.setattr(_extension, "library_path", lambda: broken)
    with pytest.raises(_extension.ExtensionError, match=r"_C\.so does not load with torch"):
        _extension.native("ray_cast")


def test_operation_the_library_does_not_have() -> None:
    with pytest.raises(_extension.ExtensionError, match="no operation 'of_tomorrow'"):
        _extension.native("of_tomorrow")
