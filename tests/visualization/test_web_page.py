from __future__ import annotations

import hashlib
import json
import re
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from scripts.visualization.job import Job
from scripts.visualization.palette import OCC3D_CLASSES
from scripts.visualization.sample_view import Moment
from scripts.visualization.sheet import SheetOptions
from scripts.visualization.web_page import pack_steps, write
from tests.visualization.browser import ROOT, open_browser, screenshot
from visualize import main

WEB = ROOT / "scripts" / "visualization" / "web"
ROAD, CAR = (0, 207, 191), (255, 158, 0)
MISSED, INVENTED = (0, 114, 190), (213, 74, 20)


class Samples:
    """Three samples of a scene; the vehicle moves 2 m between them."""

    def __init__(self, view):
        self.views = []
        for i in range(3):
            pose = np.eye(4)
            pose[:3, 3] = [1000.0 + 2.0 * i, 500.0, 0.0]
            shifted = {
                name: np.roll(getattr(view, name), -5 * i, axis=0)
                for name in ("prediction", "truth")
            }
            self.views.append(
                replace(view, index=i, time_us=500_000 * i, ego2global=pose, **shifted)
            )

    def __len__(self):
        return len(self.views)

    def view(self, index):
        return self.views[index]

    def moment(self, index):
        view = self.views[index]
        return Moment(view.scene_name, view.time_us, view.ego2global)


@pytest.fixture
def samples(view):
    return Samples(view)


@pytest.fixture
def page_file(samples, tmp_path) -> Path:
    options = SheetOptions(view="chase")
    job = Job(samples, [0, 1, 2], tmp_path, "tiny", "html", options, report=lambda _: None)
    (path,) = write(job)
    return path


def unpacked(content: bytes) -> list[int]:
    """Read the format as web/voxels.js does."""
    indices, index = [], 0
    for byte in content:
        index += byte
        if byte < 255:
            indices.append(index)
    return indices


@given(st.sets(st.integers(0, 3_000), max_size=60))
def test_packed_steps_give_the_indices_back(indices):
    ordered = sorted(indices)
    assert unpacked(pack_steps(np.array(ordered, dtype=np.int64))) == ordered


def test_vendored_libraries_are_those_of_the_release():
    listed = re.findall(r"^([0-9a-f]{64})  (\S+)$", (WEB / "vendor/README.md").read_text(), re.M)
    files = {path.relative_to(WEB / "vendor").as_posix() for path in WEB.glob("vendor/*/*")}
    assert files == {name for _, name in listed}
    for digest, name in listed:
        assert hashlib.sha256((WEB / "vendor" / name).read_bytes()).hexdigest() == digest, name


def test_page_names_nothing_to_load(page_file):
    text = page_file.read_text()
    assert not re.search(r"""(?:src|href)\s*=\s*["']?(?!data:)[\w./]""", text)
    assert not re.search(r"\bfetch\(|XMLHttpRequest|@import|url\(\s*[\"']?https?:", text)
    meta = json.loads(re.search(r'id="meta">(.*?)</script>', text, re.S).group(1))
    assert len(meta["frames"]) == 3 and [f["time"] for f in meta["frames"]] == [0, 0.5, 1.0]
    assert "MIT" in text and "three.js" in text, "the licence must travel with the library"


def test_hostile_names_stay_text(view, tmp_path):
    samples = Samples(replace(view, scene_name="../</script><img src=x onerror=alert(1)>&"))
    (path,) = write(Job(samples, [0], tmp_path, "tiny", "html", report=lambda _: None))
    assert path.parent == tmp_path
    assert "<img src=x" not in path.read_text()


def test_the_same_samples_make_the_same_page(samples, tmp_path):
    texts = []
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        (path,) = write(Job(samples, [0, 1], tmp_path / name, "t", "html", report=lambda _: None))
        texts.append(path.read_bytes())
    assert texts[0] == texts[1]


def test_command_writes_a_page_per_scene(config, tmp_path):
    out = tmp_path / "pages"
    command = ["--config", str(config), "--vis-gt", "--vis-input", "--format", "html"]
    assert main([*command, "--out", str(out)]) == 0
    (path,) = out.iterdir()
    assert path.name == "scene-0916.html"
    assert path.read_text().count("data:image/jpeg;base64,") == 2 * 6


def share_of(picture: np.ndarray, colour: tuple[int, int, int], tolerance: int = 30) -> float:
    return float((np.abs(picture - np.array(colour)).max(axis=-1) <= tolerance).mean())


def test_page_in_a_browser(page_file, samples):
    """Open the page from disk and operate it."""
    with open_browser() as browser:
        context = browser.new_context(
            viewport={"width": 960, "height": 640}, reduced_motion="reduce", offline=True
        )
        page = context.new_page()
        troubles: list[str] = []
        requests: list[str] = []
        page.on("pageerror", lambda error: troubles.append(str(error)))
        page.on("console", lambda m: troubles.append(m.text) if m.type == "error" else None)
        page.on("request", lambda request: requests.append(request.url))
        page.goto(page_file.as_uri())
        page.wait_for_selector("body[data-ready]")

        def settled(name: str) -> np.ndarray:
            page.wait_for_timeout(250)
            page.wait_for_selector("#stage[data-sharp='true']")
            return screenshot(page, f"html_{name}")

        def legend(row: str) -> tuple[bool, str]:
            button = page.locator(f"#classes button[data-label='{row}']")
            pressed = button.get_attribute("aria-pressed") == "true"
            return pressed, button.locator(".count").inner_text()

        check_legend(legend, samples.views[0].prediction)
        first = settled("prediction")
        assert share_of(first, ROAD) > 0.05

        page.click("#classes button[data-label='driveable surface']")
        without = settled("without_road")
        assert share_of(without, ROAD) < 0.2 * share_of(first, ROAD)
        assert legend("driveable surface")[0] is False
        page.keyboard.press("a")
        assert np.abs(settled("all_again") - first).mean() < 0.5

        page.click("#modes button:has-text('Ground truth')")
        truth = settled("truth")
        check_legend(legend, samples.views[0].truth)
        assert share_of(truth, CAR) > share_of(first, CAR) + 0.002

        page.click("#modes button:has-text('Difference')")
        difference = settled("difference")
        assert share_of(difference, MISSED, 60) > 0.002
        assert share_of(difference, INVENTED, 60) > 0.001

        page.keyboard.press("2")
        page.locator("#time").focus()
        page.keyboard.press("ArrowRight")
        page.wait_for_selector("body[data-frame='1']")
        later = settled("next_sample")
        assert np.abs(later - truth).mean() > 0.5
        assert "sample 2 of 3" in page.locator("#sample").inner_text()

        page.keyboard.press("t")
        top = settled("top")
        assert np.abs(top - later).mean() > 2
        names = hovered(page)
        assert {"driveable surface", "sidewalk"} <= names <= set(pretty(OCC3D_CLASSES))

        light = top[5:60, 3:9].mean()
        page.keyboard.press("d")
        assert settled("dark")[5:60, 3:9].mean() < light - 100

        page.keyboard.press("c")
        page.keyboard.press("Space")
        page.wait_for_selector("body[data-frame='2']")
        before = settled("end")
        page.mouse.move(480, 320)
        page.mouse.down()
        page.mouse.move(620, 330, steps=4)
        page.mouse.up()
        assert np.abs(settled("turned") - before).mean() > 2
        assert not troubles, troubles
        assert all(url.startswith(("file:", "blob:", "data:")) for url in requests), requests


def pretty(names):
    return [name.replace("_", " ") for name in names]


def check_legend(legend, grid: np.ndarray) -> None:
    """Check that the numbers of the legend equal the voxels of the grid."""
    expected = Counter(grid.reshape(-1).tolist())
    for label, name in enumerate(pretty(OCC3D_CLASSES)):
        pressed, text = legend(name)
        assert pressed and text == (f"{expected[label]:,}" if expected[label] else "–"), name


def hovered(page) -> set[str]:
    """Return the classes under the pointer along a row of the canvas."""
    names = set()
    for x in range(200, 720, 40):
        page.mouse.move(x, 400)
        if page.locator("#tip").is_visible():
            names.add(page.locator("#tip b").inner_text())
    return names
