"""Emulate all CUDA kernels on the CPU, and run the GPU tests with them.

    python scripts/emulate_cuda.py [--sanitize] [PYTEST ARGUMENTS]

The unchanged `.cu` files are compiled with the host's compiler against
`scripts/build/cuda_emulation/common/runtime.cuh`, which runs the threads of a block in turns. Their
C++ launchers are registered as CPU operations. The tests that take a `device` then run with this
library twice, with blocks and threads in ascending and in descending order. They detect wrong
numbers, barriers and exchanges that not all threads reach together, results that depend on the
order of threads, uninitialised memory (it holds NaNs or large numbers), grids that are too large
for a GPU, and out-of-bounds accesses (with `--sanitize`, by AddressSanitizer). Properties of real
GPUs, such as speed and memory model, are not covered.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from scripts.build import native_build, sanitizers
from scripts.runtime.command_line import CommandParser, run_command

SHIM = Path("scripts", "build", "cuda_emulation")
ORDERS = ("ascending", "descending")

# Replacement for a file that launchers need and that is not emulated.
_STREAM = """#include "common/launch.h"
opus::CudaStream opus::current_stream(c10::Device) { return nullptr; }
"""


def emulated_operations() -> list[str]:
    """Return the names of the operations with CUDA kernels."""
    return [Path(path).parent.name for path in native_build.cuda_launchers()]


def prelude(sources: Sequence[str]) -> str:
    """Return a header for all launchers: torch's headers, and CUDA's dispatch key set to CPU's."""
    lines = [f"#include {header}" for header in native_build.torch_headers(sources)]
    return "\n".join([*lines, '#include "common/launch.h"', "#define CUDA CPU", ""])


def build(folder: Path, sanitized: bool) -> Path:
    """Build the library in `folder` and return its path."""
    from torch.utils import cpp_extension

    folder.mkdir(parents=True, exist_ok=True)
    csrc = native_build.CSRC.as_posix()
    launchers, kernels = native_build.cuda_launchers(), native_build.find_sources(".cu")
    flags = ["-std=c++20", "-g1", "-fPIC", "-march=native", native_build.NO_FUSED_HOST]
    # Threads jump between their stacks, which a fortified longjmp reports as an error.
    flags += ["-O1", *native_build.SANITIZER_FLAGS] if sanitized else ["-O2", "-U_FORTIFY_SOURCE"]
    flags += [*native_build.warning_flags(), "-DOPUS_WITH_CUDA", "-DOPUS_EMULATES_CUDA"]
    torch_flags = [f for path in cpp_extension.include_paths() for f in ("-isystem", path)]
    host = ["g++", *flags, "-I", csrc, *torch_flags]
    device = ["g++", *flags, "-D__CUDACC__", "-D__CUDA_ARCH__=900", "-Wno-unknown-pragmas"]
    device += ["-I", SHIM.as_posix()]
    device += ["-I", csrc, "-include", "common/runtime.cuh", "-x", "c++"]

    (folder / "stream.cpp").write_text(_STREAM)
    (folder / "prelude.h").write_text(prelude(launchers))
    _run([*host, "-x", "c++-header", str(folder / "prelude.h")])
    of_host = [f"{csrc}/registration.cpp", str(folder / "stream.cpp")]
    commands = [(host, source) for source in of_host]
    commands += [([*host, "-include", str(folder / "prelude.h")], path) for path in launchers]
    commands += [(device, source) for source in kernels]
    objects = [str(folder / (Path(source).name + ".o")) for _, source in commands]
    jobs = int(os.environ.get("MAX_JOBS", os.cpu_count() or 1))
    with ThreadPoolExecutor(jobs) as pool:
        list(
            pool.map(
                lambda job, to: _run([*job[0], "-c", job[1], "-o", to]),
                commands, objects,
            )
        )  # fmt: skip
    library = folder / "_C_emulated.so"
    paths = [flag for path in cpp_extension.library_paths() for flag in ("-L", path)]
    link = ["g++", "-shared", "-Wl,--no-undefined", "-o", str(library), *objects, *paths]
    link += ["-ltorch_cpu", "-lc10"]
    _run(link + (["-fsanitize=address,undefined"] if sanitized else []))
    return library


def run(library: Path, sanitized: bool, pytest_arguments: Sequence[str]) -> int:
    """Run the tests in both thread orders; return an exit code other than 0 if any fails."""
    tests = [f"tests/ops/test_{name}.py" for name in emulated_operations()]
    arguments = [*tests, "-k", "cpu and not cuda", "-q", *pytest_arguments]
    os.environ["MALLOC_PERTURB_"] = "1"  # uninitialised numbers are near -1.7e38
    for order in ORDERS:
        os.environ["OPUS_EMULATED_ORDER"] = order
        if sanitized:
            code = sanitizers.run(library, arguments)
        else:
            code = subprocess.run(
                [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", *arguments],
                cwd=native_build.ROOT, check=False,
                env=dict(os.environ, OPUS_EXTENSION=str(library)),
            ).returncode  # fmt: skip
        print(f"emulated kernels, threads in {order} order: pytest ended with {code}")
        if code:
            return code
    return 0


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command and return the exit code of the tests."""
    parser = CommandParser(__doc__, takes_more=True)
    parser.add_argument("--sanitize", action="store_true", help="check every memory access")

    def test(args: argparse.Namespace) -> int:
        name = "emulated_sanitized" if args.sanitize else "emulated"
        library = build(native_build.ROOT / "build" / name, args.sanitize)
        return run(library, args.sanitize, args.others)

    return run_command(parser, test, arguments)


def _run(command: Sequence[str]) -> None:
    subprocess.run(command, cwd=native_build.ROOT, check=True)
