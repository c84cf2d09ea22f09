"""A training that is interrupted anywhere ends with the weights of an undisturbed one, bit by bit.

With the real models at a small size, augmentation, dropout, and a worker process. Steps are known
by their samples and learning rate, evaluations by their number.
"""

from __future__ import annotations

import signal
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

import jobs
from nano_parts import write_config
from scripts.runtime.checkpoint import read_checkpoint
from scripts.runtime.errors import EXIT_INTERRUPTED

ROOT = Path(__file__).resolve().parents[2]


def state_of(work_dir: Path) -> dict[str, Any]:
    return read_checkpoint(work_dir / Path((work_dir / "last_checkpoint").read_text()).name)


def steps(work_dir: Path) -> dict[int, list[str]]:
    """Learning rate and samples by iteration; a repeated iteration has to be the same."""
    done: dict[int, list[str]] = {}
    for line in work_dir.with_suffix(".txt").read_text().splitlines():
        kind, *words = line.split()
        if kind == "step":
            assert done.setdefault(int(words[1]), words[2:]) == words[2:]
    return done


def evaluations(work_dir: Path) -> int:
    return work_dir.with_suffix(".txt").read_text().count("evaluation")


def assert_same(a: Any, b: Any, path: str = "") -> None:
    if isinstance(a, torch.Tensor):
        assert torch.equal(a, b), path
    elif isinstance(a, dict):
        assert a.keys() == b.keys(), path
        for key in a:
            assert_same(a[key], b[key], f"{path}.{key}")
    elif isinstance(a, (list, tuple)):
        assert len(a) == len(b), path
        for index, (x, y) in enumerate(zip(a, b, strict=True)):
            assert_same(x, y, f"{path}[{index}]")
    else:
        assert a == b, path


def assert_same_end(whole: Path, parts: Path) -> None:
    first, second = state_of(whole), state_of(parts)
    for key in ("state_dict", "optimizer", "param_schedulers", "random_states", "place"):
        assert_same(first[key], second[key], key)
    assert_same(first.get("ema_state_dict"), second.get("ema_state_dict"))
    assert steps(parts) == steps(whole)
    assert not (parts / "interrupted.pth").exists()
