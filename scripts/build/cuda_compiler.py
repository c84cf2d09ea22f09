"""Compile the CUDA sources and report each kernel's resources; no GPU is needed.

    python scripts/compile_cuda.py [FILTER] [--out REPORT.md] [--jobs N]

Every `.cu` file of `models/csrc` is compiled for all supported architectures; warnings are errors.
The table lists registers and spills per thread and static shared memory per block, as reported by
the assembler. C++ sources that launch kernels are only checked, not compiled.
"""

from __future__ import annotations

import argparse
import re
import shlex
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from scripts.build import native_build
from scripts.runtime.atomic_write import write_atomically
from scripts.runtime.command_line import CommandParser, number_from, run_command

_ENTRY = re.compile(r"Compiling entry function '(\w+)' for 'sm_(\d+)'")
_SPILLS = re.compile(r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads")
_USED = re.compile(r"Used (\d+) registers")
_SHARED = re.compile(r"(\d+) bytes smem")


@dataclass(frozen=True)
class KernelUse:
    """Resources of one kernel on one architecture.

    Attributes:
        kernel: Name in the source, without arguments.
        architecture: Compute capability, "90" for 9.0.
        registers: Registers per thread.
        stack_bytes: Local memory per thread, for arrays indexed at run time.
        spill_bytes: Bytes stored and loaded because registers ran out.
        shared_bytes: Static shared memory per block.
    """

    kernel: str
    architecture: str
    registers: int
    stack_bytes: int
    spill_bytes: int
    shared_bytes: int


class CompileError(RuntimeError):
    """There is no CUDA compiler, or it rejects a source."""


def compile_source(
    source: str,
    cuda_home: Path,
    folder: Path,
    architectures: Sequence[str] = native_build.REPORTED_ARCHITECTURES,
) -> list[KernelUse]:
    """Compile one `.cu` file.

    Args:
        source: Path relative to the project.
        cuda_home: CUDA toolkit.
        folder: Folder for the object file.
        architectures: Compute capabilities, "90" for 9.0.

    Raises:
        CompileError: The compiler reports an error or a warning.
    """
    command = [str(cuda_home / "bin" / "nvcc"), *native_build.nvcc_flags(), "-DOPUS_WITH_CUDA"]
    command += ["-Xptxas", "-v", "-I", str(native_build.CSRC), "-c", source]
    for arch in architectures:
        command += ["-gencode", f"arch=compute_{arch},code=sm_{arch}"]
    command += ["-o", str(folder / (source.replace("/", "_") + ".o"))]
    return parse_report(_run(command, source))


def check_host_sources(sources: Sequence[str], cuda_home: Path, folder: Path) -> None:
    """Check C++ files of a CUDA build against torch's and CUDA's headers.

    Args:
        sources: Paths relative to the project.
        cuda_home: CUDA toolkit.
        folder: Folder for torch's precompiled headers, shared by all files.

    Raises:
        CompileError: The compiler reports an error or a warning.
    """
    from torch.utils import cpp_extension

    command = ["g++", "-std=c++20", *native_build.warning_flags()]
    command += ["-DOPUS_WITH_CUDA", "-DC10_CUDA_NO_CMAKE_CONFIGURE_FILE"]
    command += ["-I", str(native_build.CSRC), "-isystem", str(cuda_home / "include")]
    for path in cpp_extension.include_paths():
        command += ["-isystem", path]
    prelude = folder / "prelude.h"
    lines = [f"#include {header}\n" for header in native_build.torch_headers(sources)]
    prelude.write_text("".join(lines), encoding="utf-8")
    _run([*command, "-x", "c++-header", str(prelude)], "torch's headers")
    for source in sources:
        _run([*command, "-fsyntax-only", "-include", str(prelude), source], source)


def parse_report(text: str) -> list[KernelUse]:
    """Parse the output of `ptxas -v`."""
    uses, name, arch, stack, spill = [], "", "", 0, 0
    for line in text.splitlines():
        if entry := _ENTRY.search(line):
            name, arch = entry.groups()
            stack = spill = 0
        elif spills := _SPILLS.search(line):
            stack, stores, loads = map(int, spills.groups())
            spill = stores + loads
        elif (used := _USED.search(line)) and name:
            shared = _SHARED.search(line)
            size = int(shared.group(1)) if shared else 0
            uses.append(KernelUse(name, arch, int(used.group(1)), stack, spill, size))
            name = ""
    names = _demangle([use.kernel for use in uses])
    return [
        KernelUse(
            kernel, use.architecture, use.registers, use.stack_bytes, use.spill_bytes,
            use.shared_bytes,
        )
        for kernel, use in zip(names, uses, strict=True)
    ]  # fmt: skip


def report(uses: Sequence[KernelUse]) -> str:
    """Return a Markdown table with one row per kernel and one column per architecture."""
    architectures = sorted({use.architecture for use in uses})
    by_kernel: dict[str, dict[str, KernelUse]] = {}
    for use in uses:
        by_kernel.setdefault(use.kernel, {})[use.architecture] = use
    lines = ["| kernel | " + " | ".join(f"sm_{arch}" for arch in architectures) + " |"]
    lines.append("|---" * (len(architectures) + 1) + "|")
    for kernel, row in sorted(by_kernel.items()):
        cells = [_cell(row[arch]) if arch in row else "" for arch in architectures]
        lines.append(f"| `{kernel}` | " + " | ".join(cells) + " |")
    lines += ["", "registers / stack bytes / spilled bytes per thread / shared bytes per block"]
    return "\n".join(lines)


def compile_all(
    pattern: str = "",
    jobs: int = 1,
    architectures: Sequence[str] = native_build.REPORTED_ARCHITECTURES,
) -> list[KernelUse]:
    """Compile all CUDA sources whose path contains `pattern`.

    Raises:
        CompileError: There is no CUDA compiler, or it rejects a source.
    """
    cuda_home = native_build.find_cuda_home()
    if cuda_home is None:
        raise CompileError("no CUDA compiler: pip install -r requirements/nvcc.txt installs one")
    kernels = [path for path in native_build.find_sources(".cu") if pattern in path]
    launchers = {*native_build.find_sources("_cuda_host.cpp"), *native_build.cuda_launchers()}
    hosts = sorted(path for path in launchers if pattern in path)
    with tempfile.TemporaryDirectory() as folder, ThreadPoolExecutor(jobs) as pool:
        to = Path(folder)
        check = pool.submit(check_host_sources, hosts, cuda_home, to) if hosts else None
        tables = [pool.submit(compile_source, p, cuda_home, to, architectures) for p in kernels]
        uses = [use for table in tables for use in table.result()]
        if check:
            check.result()
    return uses


def main(arguments: Sequence[str] | None = None) -> int:
    """Compile, print or write the report, and return the exit code."""
    parser = CommandParser(__doc__)
    parser.add_argument("filter", nargs="?", default="", help="only paths that contain this text")
    parser.add_argument("--out", type=Path, help="file to write the table to")
    parser.add_argument("--jobs", type=number_from(1), default=2)

    def run(args: argparse.Namespace) -> int:
        try:
            table = report(compile_all(args.filter, args.jobs))
        except CompileError as error:
            print(error, file=sys.stderr)  # the compiler's messages, line by line
            return 1
        if args.out:
            text = f"# Resources of the CUDA kernels\n\n{table}\n"
            write_atomically(args.out, lambda path: path.write_text(text))
        print(table)
        return 0

    return run_command(parser, run, arguments)


def _cell(use: KernelUse) -> str:
    return f"{use.registers} / {use.stack_bytes} / {use.spill_bytes} / {use.shared_bytes}"


def _run(command: Sequence[str], source: str) -> str:
    done = subprocess.run(
        command, cwd=native_build.ROOT, capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise CompileError(f"{source}: {shlex.join(command)}\n{done.stdout}{done.stderr}")
    return done.stdout + done.stderr


def _demangle(names: Sequence[str]) -> list[str]:
    """Return the names in the source, without the project's namespaces and arguments."""
    done = subprocess.run(
        ["c++filt", "-p"], input="\n".join(names), capture_output=True, text=True, check=True
    )
    plain = (line.removeprefix("void ") for line in done.stdout.splitlines())
    return [re.sub(r"\bopus::(\w+::)?", "", line) for line in plain]
