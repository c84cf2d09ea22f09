"""Fixtures that build small heads and detectors."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from mmengine.registry import MODELS

import models.register  # noqa: F401
from tests.models.cases import DETECTOR, HEAD, merge


@pytest.fixture
def make_head() -> Callable[..., Any]:
    return lambda base=HEAD, **changes: MODELS.build(merge(base, **changes))


@pytest.fixture
def make_detector() -> Callable[..., Any]:
    return lambda **changes: MODELS.build(merge(DETECTOR, **changes))


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    """Run on one thread, because the tensors are too small for several."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
