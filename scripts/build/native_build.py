"""Sources, flags and toolkits of the native extension; shared by setup.py, checks and sanitizers.

This module needs only the standard library until a function asks torch for its paths.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sysconfig
from collections.abc import Sequence
from pathlib import Path

from scripts.runtime.errors import ConfigError

ROOT = Path(__file__).resolve().parents[2]
CSRC = Path("models", "csrc")  # relative: absolute source paths break build_ext --inplace caches

# Without fused multiply-adds and fast-math, kernels and their plain-torch reference
# implementations, and the two builds of one kernel body, make the same decisions (which camera,
# which voxel).
NO_FUSED_HOST = "-ffp-contract=off"
NO_FUSED_CUDA = "--fmad=false"
SANITIZER_FLAGS = [
    "-O1", "-g", "-fno-omit-frame-pointer",
    "-fsanitize=address,undefined", "-fno-sanitize=vptr", "-fno-sanitize-recover=all",
]  # fmt: skip
# Architectures compiled on machines without a GPU: A100, RTX 40 and L40, H100.
REPORTED_ARCHITECTURES = ("80", "89", "90")


def find_sources(suffix: str) -> list[str]:
    """Return the sources with a suffix, relative to the project."""
    return sorted(path.relative_to(ROOT).as_posix() for path in (ROOT / CSRC).rglob(f"*{suffix}"))


def cpu_sources() -> list[str]:
    """Return the C++ sources of a build without CUDA."""
    return [path for path in find_sources(".cpp") if not path.endswith("_cuda_host.cpp")]


def cuda_sources() -> list[str]:
    """Return the additional sources of a CUDA build: kernels, and C++ that needs CUDA's headers."""
    return find_sources(".cu") + find_sources("_cuda_host.cpp")


def cuda_launchers() -> list[str]:
    """Return the C++ sources that launch CUDA kernels, one for each `.cu` file.

    They are `_cuda_host.cpp` if an operation's GPU kernels differ much from its CPU kernels, and
    otherwise the source for both devices.
    """
    stems = [path.removesuffix("_cuda.cu") for path in find_sources(".cu")]
    apart = [f"{stem}_cuda_host.cpp" for stem in stems]
    return [
        own if (ROOT / own).is_file() else f"{stem}.cpp"
        for own, stem in zip(apart, stems, strict=True)
    ]


def torch_headers(sources: Sequence[str]) -> list[str]:
    """Return torch's headers that sources include, in the form `<torch/library.h>`."""
    text = "".join((ROOT / source).read_text(encoding="utf-8") for source in sources)
    return sorted(set(re.findall(r"#include (<(?:ATen|torch)/[^>]+>)", text)))


def warning_flags() -> list[str]:
    """Return the warning flags of the host's compiler; warnings are errors unless OPUS_WERROR=0."""
    werror = os.environ.get("OPUS_WERROR", "1") not in ("", "0")
    return ["-Wall", "-Wextra"] + (["-Werror"] if werror else [])


def nvcc_flags() -> list[str]:
    """Return the flags of every compilation by nvcc, including those of setup.py."""
    flags = ["-O3", "-std=c++20", "-lineinfo", NO_FUSED_CUDA]
    flags += ["-Xcompiler", ",".join([*warning_flags(), "-fvisibility=hidden", NO_FUSED_HOST])]
    if "-Werror" in warning_flags():
        flags += ["-Werror", "all-warnings"]
    return flags


def find_cuda_home(version: str | None = None) -> Path | None:
    """Return a CUDA toolkit's folder: from CUDA_HOME, the pip packages of requirements/*.txt, or
    PATH.

    Args:
        version: CUDA version of torch, such as "13.0". The first toolkit with the same major
            version is used, because torch builds with no other. None selects the first toolkit.

    Raises:
        ValueError: CUDA_HOME names a folder without a toolkit.
    """
    chosen = os.environ.get("CUDA_HOME")
    if chosen and not _is_toolkit(Path(chosen)):
        raise ConfigError(
            f"CUDA_HOME is '{chosen}', which has no bin/nvcc and include/cuda_runtime_api.h: give "
            "the folder of a CUDA toolkit, or unset it"
        )
    candidates = [Path(chosen)] if chosen else []
    candidates += sorted(Path(sysconfig.get_paths()["purelib"], "nvidia").glob("cu[0-9]*"))
    for compiler in (shutil.which("nvcc"), "/usr/local/cuda/bin/nvcc"):
        if compiler:
            candidates.append(Path(compiler).resolve().parents[1])
    found = [path for path in candidates if _is_toolkit(path)]
    if chosen or version is None:
        return found[0] if found else None
    major = version.partition(".")[0]
    return next((path for path in found if cuda_version(path).partition(".")[0] == major), None)


def cuda_version(cuda_home: Path) -> str:
    """Return the version of a toolkit, e.g. "13.0", as printed by its compiler."""
    told = subprocess.run(
        [str(cuda_home / "bin" / "nvcc"), "--version"], capture_output=True, text=True, check=True
    )
    found = re.search(r"release (\d+\.\d+)", told.stdout)
    return found.group(1) if found else ""


def _is_toolkit(folder: Path) -> bool:
    # nvcc without the headers may be a wrapper in a folder of programs.
    header = folder / "include" / "cuda_runtime_api.h"
    return os.access(folder / "bin" / "nvcc", os.X_OK) and header.is_file()


def cuda_library_folder(cuda_home: Path, build: Path) -> Path:
    """Return a folder in which the linker finds `libcudart.so`.

    The pip packages contain only libraries with full names (`libcudart.so.13`). For them, a folder
    with a link is created in `build`.

    Raises:
        FileNotFoundError: The toolkit has no CUDA runtime.
    """
    for folder in (cuda_home / "lib64", cuda_home / "lib"):
        if (folder / "libcudart.so").exists():
            return folder
    libraries = sorted((cuda_home / "lib").glob("libcudart.so.*"))
    if not libraries:
        raise ConfigError(
            f"{cuda_home} has no libcudart.so: install the whole CUDA toolkit, or the packages of "
            "requirements/nvcc.txt"
        )
    build.mkdir(parents=True, exist_ok=True)
    link = build / "libcudart.so"
    link.unlink(missing_ok=True)
    link.symlink_to(libraries[-1])
    return build
