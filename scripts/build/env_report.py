"""Report of installed packages, built extensions, missing parts and how to get them.

    python scripts/env_report.py

The exit code is 1 if a required part is missing.
"""

from __future__ import annotations

import ctypes.util
import importlib
import os
import platform
import shutil
import subprocess
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from scripts.build import native_build
from scripts.runtime.command_line import CommandParser, run_command
from scripts.runtime.environment import distribution_version, git_commit, package_versions

ROOT = Path(__file__).resolve().parents[2]


@dataclass(frozen=True)
class Finding:
    """One line of the report.

    Attributes:
        name: Checked item.
        state: Result of the check.
        remedy: How to install it if it is missing; empty if nothing is missing.
        is_needed: Whether the project requires it on this machine.
    """

    name: str
    state: str
    remedy: str = ""
    is_needed: bool = False


def machine_findings() -> Iterator[Finding]:
    """Yield processor, memory, GPU and compilers."""
    yield Finding("system", f"{platform.system()} {platform.release()}, {platform.machine()}")
    yield Finding("processor", f"{os.cpu_count()} cores, {_memory_gb():.0f} GB of memory")
    import torch

    if torch.cuda.is_available():
        names = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
        yield Finding("GPU", f"{', '.join(names)} (torch built for CUDA {torch.version.cuda})")
    elif shutil.which("nvidia-smi"):
        yield Finding(
            "GPU",
            "nvidia-smi is installed, but torch finds no device",
            "install a CUDA build of torch (docs/install.md) or check the driver",
        )
    else:
        yield Finding("GPU", "none; everything runs on the CPU in float32")
    compiler = shutil.which(os.environ.get("CXX", "g++"))
    yield Finding(
        "C++ compiler",
        _first_line([compiler, "--version"]) if compiler else "missing",
        "" if compiler else "apt install g++",
        is_needed=True,
    )
    yield _toolkit_finding()


def _toolkit_finding() -> Finding:
    name = "CUDA toolkit"
    try:
        toolkit = native_build.find_cuda_home()
    except ValueError as error:
        return Finding(name, str(error))
    if toolkit is None:
        return Finding(name, "none", "pip install -r requirements/nvcc.txt (GPU machines, tests)")
    return Finding(name, f"{native_build.cuda_version(toolkit)} in {toolkit}")


def built_findings() -> Iterator[Finding]:
    """Yield the parts compiled by the set-up: the project's extension and mmcv's operations."""
    libraries = sorted((ROOT / "models" / "ops").glob("*.so"))
    if libraries:
        try:
            import torch

            torch.ops.load_library(str(libraries[0]))
            registered = [
                name for name in torch._C._dispatch_get_all_op_names() if "opus::" in name
            ]
            names = ", ".join(sorted({name.split("::")[1].split(".")[0] for name in registered}))
            has = torch._C._dispatch_has_kernel_for_dispatch_key
            devices = "CPU and GPU" if has("opus::nearest_in_tree", "CUDA") else "the CPU only"
            yield Finding("native extension", f"{libraries[0].name}, for {devices}: {names}")
        except (OSError, RuntimeError) as error:
            yield Finding(
                "native extension",
                f"{libraries[0].name} does not load ({str(error).splitlines()[0]})",
                "make clean setup",
                is_needed=True,
            )
    else:
        yield Finding("native extension", "not built", "make setup", is_needed=True)
    yield _imported("mmcv's operations", "mmcv.ops", "make setup (mmcv-lite has none)", True)


def optional_findings() -> Iterator[Finding]:
    """Yield optional packages and libraries."""
    import torch

    name, way_out = "libjpeg-turbo", "apt install libjpeg-dev, then make clean setup"
    op = "jpeg_window_available"
    is_bound = hasattr(torch.ops.opus, op) and getattr(torch.ops.opus, op)()
    turbo = ctypes.util.find_library("turbojpeg")
    if is_bound:
        yield Finding(name, "used by the native extension")
    elif turbo:
        yield Finding(name, f"{turbo}, which decodes only whole images", way_out)
    else:
        yield Finding(name, "missing; JPEGs are decoded by OpenCV or Pillow", way_out)
    if torch.cuda.is_available():
        yield _imported(
            "spconv", "spconv.pytorch", "pip install -r requirements/cuda.txt", is_needed=True
        )
        yield _imported("torchvision", "torchvision", "pip install -r requirements/cuda.txt")
    else:
        yield _imported("spconv", "spconv.pytorch", "pip install -r requirements/cpu.txt (tests)")
        yield Finding("torchvision", "not checked: unused without a GPU")
    full_opencv = distribution_version("opencv-python")
    if full_opencv:
        yield Finding(
            "opencv-python",
            f"{full_opencv} is installed next to the headless one and shares its files",
            "pip uninstall opencv-python, then pip install --force-reinstall --no-deps "
            "opencv-python-headless",
        )


def _imported(name: str, module: str, remedy: str, is_needed: bool = False) -> Finding:
    try:
        importlib.import_module(module)
    except Exception as error:  # a broken binary may raise anything
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        return Finding(name, f"does not import ({reason})", remedy, is_needed)
    return Finding(name, "ok", is_needed=is_needed)


def _first_line(command: list[str]) -> str:
    try:
        lines = subprocess.run(
            command, capture_output=True, text=True, timeout=20, check=True
        ).stdout.splitlines()
    except (OSError, subprocess.SubprocessError) as error:
        return f"does not run ({error})"
    return lines[0].strip() if lines else "no output"


def _memory_gb() -> float:
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code."""
    return run_command(CommandParser(__doc__), lambda _: print_report(), arguments)


def print_report() -> int:
    """Print the report; return 1 if a required part is missing, otherwise 0."""
    print(f"versions (commit {git_commit() or 'unknown'})")
    for name, version in package_versions().items():
        print(f"  {name:<24}{version}")
    needed_missing = 0
    sections = {
        "machine": machine_findings,
        "built here": built_findings,
        "optional": optional_findings,
    }
    for title, findings in sections.items():
        print(title)
        for finding in findings():
            print(f"  {finding.name:<24}{finding.state}")
            if finding.remedy:
                print(f"  {'':<24}-> {finding.remedy}")
                needed_missing += finding.is_needed
    return 1 if needed_missing else 0
