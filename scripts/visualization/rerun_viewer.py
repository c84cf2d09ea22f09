"""Rerun's web viewer, which is part of rerun-sdk, for pictures of recordings."""

from __future__ import annotations

import io
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from scripts.runtime.errors import ConfigError

START_SECONDS = 60
# Without a graphics card, drawing a whole scene takes half a minute on a busy machine, and samples
# arrive between pictures.
_REST_SECONDS = 45
# The viewer requires 8 colour attachments, which every graphics card has, but uses fewer. The
# software renderer of recent Chromium has 6, and the viewer would refuse to start.
_MORE_ATTACHMENTS = """
const ask = WebGL2RenderingContext.prototype.getParameter;
WebGL2RenderingContext.prototype.getParameter = function (name) {
  const value = ask.call(this, name);
  const most = [this.MAX_COLOR_ATTACHMENTS, this.MAX_DRAW_BUFFERS];
  return most.includes(name) ? Math.max(value, 8) : value;
};
"""


@contextmanager
def serve_recording(recording: Path, home: Path) -> Iterator[str]:
    """Serve a recording to browsers on this machine within the context.

    Args:
        recording: Path of the `.rrd` file.
        home: Folder for the server's settings and its log, `server.log`.

    Yields:
        The page's address.

    Raises:
        ConfigError: rerun-sdk has no viewer here, or its server does not start.
    """
    try:
        import rerun_cli
    except ImportError as error:
        raise ConfigError("no rerun-sdk: run make setup") from error
    binary = Path(rerun_cli.__file__).parent / "rerun"
    web, websocket, sdk = _free_ports(3)
    command = [str(binary), "--serve-web", "--bind", "127.0.0.1", "--web-viewer-port", str(web)]
    command += ["--ws-server-port", str(websocket), "--port", str(sdk), str(recording)]
    log_path = home / "server.log"
    with log_path.open("w") as log:
        server = subprocess.Popen(
            command, env={"HOME": str(home), "PATH": ""}, stdout=log, stderr=log
        )
    try:
        if not _answers(web):
            raise ConfigError(f"Rerun's viewer did not start: see {log_path}")
        yield f"http://127.0.0.1:{web}/?url=ws://127.0.0.1:{websocket}&renderer=webgl"
    finally:
        server.terminate()
        server.wait(20)


def _free_ports(count: int) -> list[int]:
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [s.getsockname()[1] for s in sockets]
    for s in sockets:
        s.close()
    return ports


def _answers(port: int) -> bool:
    """Return whether a server answers on the port within the start-up time."""
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline:
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return True
        time.sleep(0.2)
    return False


def open_viewer(browser: Any, address: str, width: int, height: int) -> Any:
    """Open the viewer in a browser of `scripts.visualization.chromium.open_browser`.

    Requests of the viewer to its maker's servers are blocked.

    Returns:
        playwright's `Page`.
    """
    page = browser.new_page(viewport={"width": width, "height": height})
    page.add_init_script(_MORE_ATTACHMENTS)
    page.route(
        "**/*",
        lambda route: route.continue_() if "//127.0.0.1" in route.request.url else route.abort(),
    )
    page.goto(address)
    return page


def share_of_colour(picture: NDArray[np.integer], colour: tuple[int, int, int]) -> float:
    """Return the share of pixels [H, W, 3] within 40 of 255 of a colour, as shading changes it."""
    return float((np.abs(picture.astype(int) - np.array(colour)).max(axis=-1) <= 40).mean())


def wait_for_colour(
    page: Any, colour: tuple[int, int, int], share: float, seconds: float = 420
) -> Image.Image:
    """Take pictures of a page until one shows enough of a colour; return it when it is stable.

    Voxels appear before images and labels, and the first sample before the last.

    Raises:
        ConfigError: no picture does in time.
    """
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        page.wait_for_timeout(1000)
        if share_of_colour(np.asarray(_picture(page)), colour) > share:
            return _resting_picture(page, deadline)
    raise ConfigError(f"Rerun's viewer has not drawn the recording within {seconds:.0f} s")


def _resting_picture(page: Any, deadline: float) -> Image.Image:
    """Return the picture of a page when it has not changed for some seconds, or at the deadline."""
    before, since = _picture(page), time.monotonic()
    while time.monotonic() < deadline and time.monotonic() - since < _REST_SECONDS:
        page.wait_for_timeout(1000)
        now = _picture(page)
        if now != before:
            before, since = now, time.monotonic()
    return before


def _picture(page: Any) -> Image.Image:
    with Image.open(io.BytesIO(page.screenshot())) as file:
        return file.convert("RGB")
