from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from mmengine.logging import MessageHub, MMLogger
from mmengine.registry import DefaultScope
from mmengine.visualization import Visualizer

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
if str(HERE) not in sys.path:
    sys.path.insert(0, str(HERE))  # configs of these tests import `tiny_parts`


@pytest.fixture(autouse=True)
def _fresh_mmengine() -> Iterator[None]:
    """Runners of one second share a name; their logs and message hubs must not be shared."""
    yield
    for manager in (MessageHub, MMLogger, Visualizer, DefaultScope):
        manager._instance_dict.clear()


@pytest.fixture
def root() -> Path:
    return ROOT


@pytest.fixture
def config(tmp_path: Path) -> Path:
    from tiny_parts import write_config

    return write_config(tmp_path, ROOT)
