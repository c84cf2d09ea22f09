"""Shared fixtures of the operations' tests."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="session", autouse=True)
def _extension() -> None:
    from models.ops import _extension

    _extension.load()  # one clear error instead of one in each test


@pytest.fixture
def at_threads() -> Iterator[Callable[..., Any]]:
    """Call a function with a given number of torch threads."""
    before = torch.get_num_threads()

    def call(threads: int, function: Callable[..., Any], *args: Any) -> Any:
        torch.set_num_threads(threads)
        return function(*args)

    yield call
    torch.set_num_threads(before)


@pytest.fixture(scope="session", params=["cpu", pytest.param("cuda", marks=pytest.mark.cuda)])
def device(request: pytest.FixtureRequest) -> str:
    """Return the device; on machines without a GPU the second one is skipped."""
    return request.param


@pytest.fixture
def needs_memory() -> Callable[[float], None]:
    """Skip the test if less than the needed GiB of memory are free."""

    def check(gib: float) -> None:
        free = free_memory_gib()
        if free < gib:
            pytest.skip(f"takes {gib} GiB of memory, {free:.1f} GiB are known to be free")

    return check


def free_memory_gib() -> float:
    """Return the free memory of machine and control group; 0 if it is unknown."""
    table = Path("/proc/meminfo")
    if not table.exists():
        return 0.0
    (line,) = (row for row in table.read_text().splitlines() if row.startswith("MemAvailable"))
    free = int(line.split()[1]) / 2**20
    limit, used = (Path("/sys/fs/cgroup") / f"memory.{name}" for name in ("max", "current"))
    if limit.exists() and limit.read_text().strip() != "max":
        free = min(free, (int(limit.read_text()) - int(used.read_text())) / 2**30)
    return free


@pytest.fixture
def lazy_zeros() -> Callable[..., Tensor]:
    """Create float32 zeros that take memory only when they are written."""
    # calloc does not write zeros, torch does
    return lambda *shape: torch.from_numpy(np.zeros(shape, np.float32))


@pytest.fixture
def run_in_new_process() -> Callable[..., None]:
    """Run Python code in a new process, with environment variables given by keyword."""

    # With sanitizers, importing torch takes minutes on a busy machine.
    seconds = 1800 if "ASAN_OPTIONS" in os.environ else 300

    def run(code: str, **environment: str) -> None:
        done = subprocess.run(
            [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True,
            timeout=seconds, env={**os.environ, **environment},
        )  # fmt: skip
        assert done.returncode == 0, done.stderr

    return run
