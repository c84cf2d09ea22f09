"""Headless Chromium for tests, which are skipped without one."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from scripts.runtime.errors import ConfigError
from scripts.visualization import chromium

ROOT = Path(__file__).resolve().parents[2]
SCREENSHOTS = ROOT / "outputs" / "screenshots"


@contextmanager
def open_browser() -> Iterator[Any]:
    """Open a browser, or skip the test without one."""
    with ExitStack() as stack:
        try:
            browser = stack.enter_context(chromium.open_browser())
        except ConfigError as error:
            pytest.skip(str(error))
        yield browser


def screenshot(page: Any, name: str) -> np.ndarray:
    """Take a screenshot of the page, store it in the test's output, and return it [H, W, 3]."""
    SCREENSHOTS.mkdir(parents=True, exist_ok=True)
    path = SCREENSHOTS / f"{name}.png"
    page.screenshot(path=str(path))
    with Image.open(path) as picture:
        return np.asarray(picture.convert("RGB")).astype(int)
