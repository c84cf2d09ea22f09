"""Rerun's own web viewer, which comes with rerun-sdk, opens a recording in headless Chromium."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable

import numpy as np
import pytest

from scripts.visualization.rerun_viewer import open_viewer, serve_recording, share_of_colour
from tests.visualization.browser import open_browser, screenshot
from visualize import main

pytest.importorskip("rerun_cli", reason="no rerun-sdk: run make setup")

ROAD = (0, 207, 191)
WIDTH, HEIGHT = 1000, 640
# Positions in the window of the pinned release, pixels.
PANEL_BUTTON, SEARCH_BUTTON = (926, 13), (158, 139)
EYE_OF_THE_CLASS = (192, 333)
FIRST_SAMPLE = (383, 622)
PANEL_WIDTH = 200


def share_of_road(picture: np.ndarray) -> float:
    return share_of_colour(picture[50:330, PANEL_WIDTH:], ROAD)


@pytest.mark.slow
@pytest.mark.skipif(
    sys.platform != "linux", reason="the flags of the software renderer are Linux's"
)
def test_recording_in_rerun_s_viewer(config, tmp_path):
    out = tmp_path / "out"
    command = ["--config", str(config), "--vis-gt", "--vis-input", "--format", "rrd"]
    with open_browser() as browser:
        assert main([*command, "--out", str(out)]) == 0
        (recording,) = out.iterdir()
        with serve_recording(recording, tmp_path) as address:
            operate(browser, address)


def operate(browser, address: str) -> None:
    page = open_viewer(browser, address, WIDTH, HEIGHT)

    def until(
        name: str,
        condition: Callable[[np.ndarray], bool],
        act: Callable[[], None] = lambda: None,
    ) -> np.ndarray:
        """Act and wait for a picture; repeat the action if the picture does not change."""
        for _ in range(4):
            act()
            deadline = time.monotonic() + 45
            while time.monotonic() < deadline:
                page.wait_for_timeout(1000)
                picture = screenshot(page, f"rrd_{name}")
                if condition(picture):
                    return picture
        raise AssertionError(f"{name} did not appear: see outputs/screenshots")

    def click(place: tuple[int, int]) -> None:
        # The viewer reads the mouse once per picture, which is slow without a graphics card.
        # Buttons in a row of the tree appear under the pointer.
        page.mouse.move(*place)
        page.wait_for_timeout(2500)
        page.mouse.down()
        page.wait_for_timeout(250)  # from 0.8 s on it would be no click
        page.mouse.up()

    opened = until("opened", lambda picture: share_of_road(picture) > 0.02)

    scene = slice(50, 340)
    first = until(
        "first_sample",
        lambda picture: np.abs(picture[scene] - opened[scene]).mean() > 2,
        lambda: click(FIRST_SAMPLE),
    )

    panel = (slice(50, 600), slice(0, 150))
    until(
        "panel",
        lambda picture: np.abs(picture[panel] - first[panel]).mean() > 5,
        lambda: click(PANEL_BUTTON),
    )
    click(SEARCH_BUTTON)
    page.wait_for_timeout(2000)
    page.keyboard.type("driveable", delay=200)  # reduces the tree to the path to this class
    page.wait_for_timeout(3000)
    before = share_of_road(screenshot(page, "rrd_searched"))
    until(
        "without_road",
        lambda picture: share_of_road(picture) < 0.1 * before,
        lambda: click(EYE_OF_THE_CLASS),
    )
