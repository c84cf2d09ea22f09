"""Settings shared by all tests: determinism, the `cuda` marker, the hypothesis profile."""

from __future__ import annotations

import gc
import os
import random

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, settings

# The examples of a property test depend only on its source, so that failures can be repeated.
settings.register_profile(
    "deterministic",
    derandomize=True,
    deadline=None,
    database=None,
    max_examples=int(os.environ.get("OPUS_HYPOTHESIS_EXAMPLES", "30")),
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)
settings.load_profile("deterministic")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip tests marked `cuda` on machines without a CUDA device."""
    if torch.cuda.is_available():
        return
    skip = pytest.mark.skip(reason="no CUDA device on this machine")
    for item in items:
        if item.get_closest_marker("cuda"):  # keywords hold names of folders as well
            item.add_marker(skip)


@pytest.fixture(autouse=True)
def _seed() -> None:
    """Start every test from the same random state."""
    random.seed(0)
    np.random.seed(0)
    torch.manual_seed(0)


@pytest.fixture(scope="module", autouse=True)
def _settled_heap() -> None:
    """Exclude objects of earlier modules from garbage collection.

    mmengine collects garbage for every data set it builds. With the imports and caches of all other
    tests this would take seconds.
    """
    gc.collect()
    gc.freeze()
