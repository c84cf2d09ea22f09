"""Run every tutorial: write its files, run its code and commands."""

from __future__ import annotations

import importlib
import re
import shlex
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from mmengine.logging import MessageHub, MMLogger
from mmengine.registry import METRICS, MODELS, DefaultScope
from mmengine.visualization import Visualizer

ROOT = Path(__file__).resolve().parents[2]
TUTORIALS = sorted((ROOT / "docs" / "tutorials").glob("*.md"))
BLOCK = re.compile(r"^```(python|sh)(?: title=\"([^\"]+)\")?\n(.*?)^```$", re.MULTILINE | re.DOTALL)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Yield a folder like a checkout; remove imported modules and registered parts afterwards."""
    (tmp_path / "configs").symlink_to(ROOT / "configs")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    yield tmp_path
    for name, module in list(sys.modules.items()):
        if str(tmp_path) in str(getattr(module, "__file__", "")):
            del sys.modules[name]
            for registry in (METRICS, MODELS):
                for part, cls in list(registry.module_dict.items()):
                    if cls.__module__ == name:
                        del registry._module_dict[part]
    for manager in (MessageHub, MMLogger, Visualizer, DefaultScope):
        manager._instance_dict.clear()


def run_command(line: str) -> None:
    """Run `python FILE ARGUMENTS` in this process; its exit code must be 0."""
    python, file, *arguments = shlex.split(line)
    assert python == "python"
    module = importlib.import_module(file.removesuffix(".py").replace("/", "."))
    assert module.main(arguments) == 0, line


@pytest.mark.parametrize("path", TUTORIALS, ids=lambda path: path.stem)
def test_tutorial_runs(path: Path, folder: Path) -> None:
    namespace: dict[str, Any] = {}
    blocks = BLOCK.findall(path.read_text())
    assert blocks
    for language, title, text in blocks:
        if title:
            (folder / title).write_text(text)
        elif language == "python":
            exec(compile(text, str(path), "exec"), namespace)
        else:
            for line in text.replace("\\\n", " ").splitlines():
                run_command(line)


def test_the_new_head_learns_and_predicts(folder: Path) -> None:
    """On a small batch the tutorial's head has finite gradients everywhere, and predicts."""
    import torch

    import models.register  # noqa: F401 - enters the parts into the registries
    from tests.models.cases import POINT_HEAD, make_geometry, make_sample

    text = (ROOT / "docs" / "tutorials" / "add_a_head.md").read_text()
    files = {title: code for _, title, code in BLOCK.findall(text) if title}
    (folder / "nearest_head.py").write_text(files["nearest_head.py"])
    importlib.import_module("nearest_head")
    head = MODELS.build(POINT_HEAD | dict(type="NearestHead", score_thr=0.01))
    levels = [torch.rand(1, 12, 32, 16 // 2**i, 24 // 2**i) for i in range(3)]
    samples = [make_sample(0)]
    head.train()
    losses = head.loss(head(levels, make_geometry(1)), samples)
    sum(losses.values()).backward()
    silent = [name for name, p in head.named_parameters() if p.grad is None]
    assert not silent, silent
    assert all(p.grad.isfinite().all() for p in head.parameters())
    head.eval()
    sample = head.predict(head(levels, make_geometry(1)), samples)[0]
    assert len(sample.pred_coords) == len(sample.pred_labels) > 0
    assert len(sample.pred_coords.unique(dim=0)) == len(sample.pred_coords)
