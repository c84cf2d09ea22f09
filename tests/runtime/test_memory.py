from __future__ import annotations

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
# Takes and frees a block of 16 MB again and again; prints the page faults of that.
PROGRAM = """
import resource, sys, torch
from scripts.runtime.memory import keep_freed_memory
if sys.argv[1] == "keep":
    assert keep_freed_memory()
def faults():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt
torch.ones(4 << 20)
before = faults()
for _ in range(20):
    torch.ones(4 << 20)
print(faults() - before)
"""


def test_freed_memory_is_used_again() -> None:
    counts = {}
    for mode in ("default", "keep"):
        done = subprocess.run(
            [sys.executable, "-c", PROGRAM, mode],
            cwd=ROOT,
            capture_output=True,
            text=True,
            check=True,
        )
        counts[mode] = int(done.stdout)
    # a block has 4096 pages; huge pages may make it fewer faults by default
    assert counts["keep"] * 5 < counts["default"] or counts["default"] < 100
    assert counts["keep"] < 4096
