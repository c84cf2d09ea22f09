from __future__ import annotations

import os
import platform
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
# Steps that take and free the same tensors every time; prints the page faults of the last ones.
PROGRAM = """
import resource, sys, torch
from scripts.runtime.host_allocator import keep_freed_memory
torch.set_num_threads(1)
if sys.argv[1] == "keep":
    assert keep_freed_memory()
def faults():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt
net = torch.nn.Sequential(*[torch.nn.Conv2d(16, 16, 3, padding=1) for _ in range(6)])
def step():
    net(torch.ones(1, 16, 96, 128)).sum().backward()
for _ in range(3):
    step()
before = faults()
for _ in range(3):
    step()
print(faults() - before)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="an option of glibc")
def test_freed_memory_is_used_again() -> None:
    counts = {}
    for mode in ("default", "keep"):
        done = subprocess.run(
            [sys.executable, "-c", PROGRAM, mode],
            cwd=ROOT,
            # fixed where glibc would adapt them to what the process happened to do
            env={
                **os.environ,
                "MALLOC_MMAP_THRESHOLD_": "131072",
                "MALLOC_TRIM_THRESHOLD_": "131072",
            },
            capture_output=True,
            text=True,
            check=True,
        )
        counts[mode] = int(done.stdout)
    assert counts["default"] > 0  # thousands where pages have 4 kB
    assert counts["keep"] * 10 < counts["default"]
