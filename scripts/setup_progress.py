"""Condense a build's output: elapsed time, ninja's [n/m], pip's milestones, a heartbeat.

Reads standard input, writes every line to a log file and the telling ones to standard output.
Standard library only, and Python 3.8 syntax: it runs before anything is installed.
"""

import argparse
import queue
import re
import sys
import threading
import time

NINJA = re.compile(r"^\s*\[(\d+)/(\d+)\]")
MILESTONE = re.compile(
    r"^\s*(Collecting|Downloading|Processing|Building wheel|Created wheel|"
    r"Installing collected|Successfully|ERROR|error:|FAILED|running build_ext)"
)
HEARTBEAT_SECONDS = 30.0
NINJA_SECONDS = 10.0  # at most one [n/m] line in this time: logs of CI stay short
WIDTH = 100


def _clock(seconds: float) -> str:
    return f"{int(seconds) // 60:d}:{int(seconds) % 60:02d}"


def _read_lines(lines: "queue.Queue") -> None:
    for line in sys.stdin:
        lines.put(line)
    lines.put(None)


def _condense(line: str) -> str:
    """Cut a milestone line to one screen line; addresses of indexes are of no interest."""
    text = re.sub(r"\b\w+://\S+/", "", line.strip())
    return text if len(text) <= WIDTH else text[: WIDTH - 1] + "…"


def main() -> int:
    """Filter standard input until it ends."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--log", required=True, help="file that takes every line")
    parser.add_argument("--title", required=True)
    args = parser.parse_args()

    lines: queue.Queue = queue.Queue()
    threading.Thread(target=_read_lines, args=(lines,), daemon=True).start()
    start = last_shown = time.monotonic()
    last_ninja = 0.0
    step = ""

    def show(text: str) -> None:
        nonlocal last_shown
        last_shown = time.monotonic()
        print(f"  {_clock(last_shown - start):>6}  {text}", flush=True)

    print(f"-> {args.title}", flush=True)
    with open(args.log, "w", encoding="utf-8", errors="replace") as log:
        while True:
            try:
                line = lines.get(timeout=1.0)
            except queue.Empty:
                if time.monotonic() - last_shown > HEARTBEAT_SECONDS:
                    show(f"still at it {step}".rstrip())
                continue
            if line is None:
                break
            log.write(line)
            log.flush()
            ninja = NINJA.match(line)
            if ninja:
                step = f"[{ninja.group(1)}/{ninja.group(2)}]"
                now = time.monotonic()
                if now - last_ninja > NINJA_SECONDS or ninja.group(1) == ninja.group(2):
                    last_ninja = now
                    show(f"compiling {step}")
            elif MILESTONE.match(line):
                show(_condense(line))
    print(f"   done in {_clock(time.monotonic() - start)}", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
