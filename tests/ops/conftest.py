"""Shared by the tests of the native operations."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="session", autouse=True)
def _extension() -> None:
    from models.ops import _extension

    _extension.load()  # one clear error instead of one in each test


@pytest.fixture
def at_threads() -> Iterator[Callable[..., Any]]:
    """Calls a function with a given number of torch threads."""
    before = torch.get_num_threads()

    def call(threads: int, function: Callable[..., Any], *args: Any) -> Any:
        torch.set_num_threads(threads)
        return function(*args)

    yield call
    torch.set_num_threads(before)


@pytest.fixture(scope="session", params=["cpu", pytest.param("cuda", marks=pytest.mark.cuda)])
def device(request: pytest.FixtureRequest) -> str:
    """Where the operation runs; on machines without a GPU the second half is skipped."""
    return request.param


@pytest.fixture
def run_in_new_process() -> Callable[..., None]:
    """Runs Python code in a process of its own, with environment variables given by keyword."""

    # with sanitizers loading torch alone takes minutes of a busy machine
    seconds = 1800 if "ASAN_OPTIONS" in os.environ else 300

    def run(code: str, **environment: str) -> None:
        done = subprocess.run(
            [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True,
            timeout=seconds, env={**os.environ, **environment},
        )  # fmt: skip
        assert done.returncode == 0, done.stderr

    return run
