"""Headless Chromium, if installed, driven by playwright, for pictures of pages."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from scripts.runtime.errors import ConfigError

INSTALL = "no Chromium: apt-get install chromium, or .venv/bin/playwright install chromium"
_NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
# A software renderer replaces the graphics card. In containers, Chromium's own sandbox is often not
# permitted and /dev/shm is often small.
_FLAGS = [
    "--no-sandbox",
    "--disable-dev-shm-usage",
    "--use-angle=swiftshader",
    "--enable-unsafe-swiftshader",
    "--ignore-gpu-blocklist",
]


def _find(playwright: Any) -> str:
    """Return the path of $OPUS_CHROMIUM, the system's Chromium, or playwright's own."""
    own = playwright.chromium.executable_path
    candidates = [os.environ.get("OPUS_CHROMIUM"), *map(shutil.which, _NAMES), own]
    for path in candidates:
        if path and Path(path).is_file():
            return path
    raise ConfigError(INSTALL)


@contextmanager
def open_browser() -> Iterator[Any]:
    """Open a browser without a window: playwright's `Browser`.

    Raises:
        ConfigError: Chromium or playwright is not installed.
    """
    try:
        from playwright.sync_api import sync_playwright
    except ImportError as error:
        raise ConfigError("no playwright: run make setup") from error
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=_find(playwright), args=_FLAGS)
        try:
            yield browser
        finally:
            browser.close()
