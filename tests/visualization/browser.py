"""Headless Chromium for tests: found where it is installed, driven by playwright."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

ROOT = Path(__file__).resolve().parents[2]
SCREENSHOTS = ROOT / "outputs" / "screenshots"
INSTALL = "no Chromium: apt-get install chromium, or .venv/bin/playwright install chromium"
# A software renderer stands in for the graphics card. Containers' processes may not make
# sandboxes of their own, and their /dev/shm is often small.
FLAGS = [
    "--no-sandbox",
    "--disable-dev-shm-usage",
    "--use-angle=swiftshader",
    "--enable-unsafe-swiftshader",
    "--ignore-gpu-blocklist",
]


def find_chromium(playwright: Any) -> str | None:
    """Path of a Chromium: of $OPUS_CHROMIUM, the system's, or playwright's own."""
    names = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
    own = playwright.chromium.executable_path
    candidates = [os.environ.get("OPUS_CHROMIUM"), *map(shutil.which, names), own]
    return next((path for path in candidates if path and Path(path).is_file()), None)


@contextmanager
def open_browser() -> Iterator[Any]:
    """A browser, or a skipped test where there is none."""
    sync_api = pytest.importorskip("playwright.sync_api", reason="no playwright: run make setup")
    with sync_api.sync_playwright() as playwright:
        path = find_chromium(playwright)
        if path is None:
            pytest.skip(INSTALL)
        browser = playwright.chromium.launch(executable_path=path, args=FLAGS)
        try:
            yield browser
        finally:
            browser.close()


def screenshot(page: Any, name: str) -> np.ndarray:
    """Take a picture of the page, keep it among the test's output, and return it [H, W, 3]."""
    SCREENSHOTS.mkdir(parents=True, exist_ok=True)
    path = SCREENSHOTS / f"{name}.png"
    page.screenshot(path=str(path))
    with Image.open(path) as picture:
        return np.asarray(picture.convert("RGB")).astype(int)
