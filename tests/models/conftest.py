"""Fixtures that build small heads and detectors."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from mmengine.registry import MODELS

import models.register  # noqa: F401
from tests.models.cases import DETECTOR, HEAD, merge


@pytest.fixture
def make_head() -> Callable[..., Any]:
    return lambda **changes: MODELS.build(merge(HEAD, **changes))


@pytest.fixture
def make_detector() -> Callable[..., Any]:
    return lambda **changes: MODELS.build(merge(DETECTOR, **changes))
