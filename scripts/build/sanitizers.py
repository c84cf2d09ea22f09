"""Run the tests of the native operations on a CPU build with sanitizers.

    python scripts/sanitize.py [PYTEST ARGUMENTS]      # default: tests/ops -k "not cuda_sources"

Builds `build/sanitized/models/ops/_C*.so` with AddressSanitizer and UndefinedBehaviorSanitizer
(gcc), then runs the tests with it. Out-of-bounds accesses and undefined behaviour end the run.
Memory leaks count only if the extension's own code allocated the memory, because the interpreter
and torch keep much memory until the process ends.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from scripts.runtime.command_line import CommandParser, run_command

ROOT = Path(__file__).resolve().parents[2]
BUILD = ROOT / "build" / "sanitized"
# The compile test runs nvcc; the others need no native code, or terabytes of address space.
DEFAULT_TESTS = ["tests/ops", "-q", "-k", "not cuda_sources and not test_extension and not 32_bits"]


def build() -> Path:
    """Build the library and return its path."""
    command = [sys.executable, "setup.py", "build_ext", "--build-lib", str(BUILD)]
    command += ["--build-temp", str(BUILD / "objects")]
    environment = dict(os.environ, OPUS_SANITIZE="1", OPUS_CPU_ONLY="1")
    subprocess.run(command, cwd=ROOT, env=environment, check=True)
    return next((BUILD / "models" / "ops").glob("_C*.so"))


def runtime_libraries() -> str:
    """Return the sanitizers' and the C++ runtime, which must be loaded before torch."""
    names = ("libasan.so", "libubsan.so", "libstdc++.so")
    paths = (
        subprocess.run(
            ["g++", f"-print-file-name={name}"], capture_output=True, text=True, check=True
        ).stdout.strip()
        for name in names
    )
    return ":".join(str(Path(path).resolve()) for path in paths)


def leaks_of(report: str, library: str) -> list[str]:
    """Return the leaks of a report whose stack has a frame in the library."""
    blocks = re.split(r"\n\s*\n", report)
    return [block for block in blocks if "leak of" in block and library in block]


def run(library: Path, pytest_arguments: Sequence[str]) -> int:
    """Run the tests; return 0 only if tests, sanitizers and leak check succeed."""
    with tempfile.TemporaryDirectory() as folder:
        asan = "detect_leaks=1:fast_unwind_on_malloc=0:malloc_context_size=20:exitcode=99"
        environment = dict(
            os.environ,
            OPUS_EXTENSION=str(library),
            OPUS_HYPOTHESIS_EXAMPLES=os.environ.get("OPUS_HYPOTHESIS_EXAMPLES", "5"),
            LD_PRELOAD=runtime_libraries(),
            ASAN_OPTIONS=f"{asan}:log_path={folder}/asan:allocator_may_return_null=1",
            UBSAN_OPTIONS="print_stacktrace=1:halt_on_error=1",
            LSAN_OPTIONS="exitcode=0:report_objects=0",
            PYTHONMALLOC="malloc",
        )
        command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", *pytest_arguments]
        code = subprocess.run(command, cwd=ROOT, env=environment, check=False).returncode
        reports = [path.read_text(errors="replace") for path in Path(folder).glob("asan*")]
    for report in reports:
        if "ERROR: AddressSanitizer" in report:
            print(report)
            code = code or 99
    leaks = [leak for report in reports for leak in leaks_of(report, library.name)]
    for leak in leaks:
        print(leak, end="\n\n")
    print(f"sanitizers: pytest ended with {code}, {len(leaks)} leaks of the extension")
    return code or int(bool(leaks))


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command and return the exit code of the tests."""
    parser = CommandParser(__doc__, takes_more=True)
    return run_command(parser, lambda args: run(build(), args.others or DEFAULT_TESTS), arguments)
