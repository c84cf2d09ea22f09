"""Condense a build's output: elapsed time, ninja's [n/m], pip's milestones, a heartbeat.

Reads standard input, writes every line to a log file, and writes informative lines to standard
output. Uses only the standard library, because it runs before anything is installed.
"""

from __future__ import annotations

import argparse
import queue
import re
import sys
import threading
import time
from pathlib import Path

NINJA = re.compile(r"^\s*\[(\d+)/(\d+)\]")
PACKAGE = re.compile(r"^\s*(?:Downloading|Processing)\s+(\S+)(.*)")
MILESTONE = re.compile(
    r"^\s*(Building wheel|Created wheel|Installing collected|Successfully installed|ERROR|error:|"
    r"FAILED)"
)
# mmengine and mmcv are installed without their dependencies; pip reports this each time.
EXPECTED = re.compile(r"^ERROR: pip's dependency resolver does not currently take into account")
HEARTBEAT_SECONDS = 30.0
MOVING_SECONDS = 10.0  # at most one line about files or packages per interval, for short logs
WIDTH = 88


def _clock(seconds: float) -> str:
    return f"{int(seconds) // 60:d}:{int(seconds) % 60:02d}"


def _read_lines(lines: queue.Queue[str | None]) -> None:
    for line in sys.stdin:
        lines.put(line)
    lines.put(None)


class Condenser:
    """Filter that decides which lines are shown, and how."""

    def __init__(self) -> None:
        self._start = self._last_shown = time.monotonic()
        self._last_moving = 0.0
        self._num_packages = 0
        self._step = ""

    def elapsed(self) -> str:
        """Return the time since the start in minutes and seconds."""
        return _clock(time.monotonic() - self._start)

    def take(self, line: str) -> None:
        """Show a line if it is informative."""
        ninja, package = NINJA.match(line), PACKAGE.match(line)
        if ninja:
            self._step = f"[{ninja[1]}/{ninja[2]}]"
            self._show_moving(f"compiling {self._step}", always=ninja[1] == ninja[2])
        elif package:
            self._num_packages += 1
            name, size = Path(package[1]).name, package[2].split("(from")[0].strip()
            self._show_moving(f"package {self._num_packages}: {name} {size}".rstrip())
        elif MILESTONE.match(line) and not EXPECTED.match(line):
            self._show(line.strip())

    def idle(self) -> None:
        """Print that work is in progress if nothing has been printed for a while."""
        if time.monotonic() - self._last_shown > HEARTBEAT_SECONDS:
            self._show(f"still running {self._step}".rstrip())

    def _show_moving(self, text: str, always: bool = False) -> None:
        now = time.monotonic()
        if always or now - self._last_moving > MOVING_SECONDS:
            self._last_moving = now
            self._show(text)

    def _show(self, text: str) -> None:
        self._last_shown = time.monotonic()
        text = text if len(text) <= WIDTH else text[: WIDTH - 1] + "…"
        print(f"  {self.elapsed():>6}  {text}", flush=True)


def main() -> int:
    """Filter standard input until it ends."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--log", required=True, help="file to write every line to")
    parser.add_argument("--title", required=True)
    args = parser.parse_args()

    lines: queue.Queue[str | None] = queue.Queue()
    threading.Thread(target=_read_lines, args=(lines,), daemon=True).start()
    print(f"-> {args.title}", flush=True)
    condenser = Condenser()
    with open(args.log, "w", encoding="utf-8", errors="replace") as log:
        while True:
            try:
                line = lines.get(timeout=1.0)
            except queue.Empty:
                condenser.idle()
                continue
            if line is None:
                break
            log.write(line)
            log.flush()
            condenser.take(line)
    print(f"   done in {condenser.elapsed()}", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
