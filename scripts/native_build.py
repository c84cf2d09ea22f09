"""Sources, flags and toolkits of the native extension; shared by setup.py, checks and sanitizers.

Needs the standard library alone until a function asks torch for its paths.
"""

from __future__ import annotations

import os
import re
import shutil
import sysconfig
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
CSRC = Path("models", "csrc")  # relative: absolute source paths break build_ext --inplace caches

# Kernels and their plain-torch twins, and the two builds of one kernel body, make the same
# decisions (which camera, which voxel) only if no product is fused into a sum behind their back.
# Fast-math is out for the same reason.
NO_FUSED_HOST = "-ffp-contract=off"
NO_FUSED_CUDA = "--fmad=false"
SANITIZER_FLAGS = [
    "-O1", "-g", "-fno-omit-frame-pointer",
    "-fsanitize=address,undefined", "-fno-sanitize=vptr", "-fno-sanitize-recover=all",
]  # fmt: skip
# The GPUs whose code is compiled and reported where there is none: A100, RTX 40 and L40, H100.
REPORTED_ARCHITECTURES = ("80", "89", "90")


def find_sources(suffix: str) -> list[str]:
    """Sources with a suffix, relative to the project."""
    return sorted(path.relative_to(ROOT).as_posix() for path in (ROOT / CSRC).rglob(f"*{suffix}"))


def cpu_sources() -> list[str]:
    """C++ sources of a build without CUDA."""
    return [path for path in find_sources(".cpp") if not path.endswith("_cuda.cpp")]


def cuda_sources() -> list[str]:
    """What a CUDA build has besides: kernels, and C++ that needs CUDA's headers."""
    return find_sources(".cu") + find_sources("_cuda.cpp")


def torch_headers(sources: Sequence[str]) -> list[str]:
    """Torch's headers that sources include, as they write them: ``<torch/library.h>``."""
    text = "".join((ROOT / source).read_text(encoding="utf-8") for source in sources)
    return sorted(set(re.findall(r"#include (<(?:ATen|torch)/[^>]+>)", text)))


def warning_flags() -> list[str]:
    """Warnings of the host's compiler; errors unless OPUS_WERROR=0."""
    werror = os.environ.get("OPUS_WERROR", "1") not in ("", "0")
    return ["-Wall", "-Wextra"] + (["-Werror"] if werror else [])


def nvcc_flags() -> list[str]:
    """Flags of every compilation by nvcc, those of setup.py among them."""
    flags = ["-O3", "-std=c++20", "-lineinfo", NO_FUSED_CUDA]
    flags += ["-Xcompiler", ",".join([*warning_flags(), "-fvisibility=hidden", NO_FUSED_HOST])]
    if "-Werror" in warning_flags():
        flags += ["-Werror", "all-warnings"]
    return flags


def find_cuda_home() -> Path | None:
    """Folder of a CUDA toolkit: of CUDA_HOME, the pip packages of requirements/cpu.txt, or PATH."""
    candidates = [Path(os.environ["CUDA_HOME"])] if os.environ.get("CUDA_HOME") else []
    candidates += sorted(Path(sysconfig.get_paths()["purelib"], "nvidia").glob("cu[0-9]*"))
    for compiler in (shutil.which("nvcc"), "/usr/local/cuda/bin/nvcc"):
        if compiler:
            candidates.append(Path(compiler).resolve().parents[1])
    for candidate in candidates:
        if os.access(candidate / "bin" / "nvcc", os.X_OK):
            return candidate
    return None
