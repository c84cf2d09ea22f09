"""Builds the native operations of ``models/csrc`` into ``models/ops/_C*.so``.

    python setup.py build_ext --inplace          # in the source tree
    pip install -e . --no-build-isolation        # as an editable package

The CPU sources are always built. Where torch was built with CUDA, a CUDA toolkit is found and
``models/csrc`` holds ``.cu`` files, those are built into the same library.

Environment switches:
    OPUS_NATIVE_ARCH=1  compile for this machine's processor (the library is then not portable;
                        the hot kernels choose AVX2 at run time anyway)
    OPUS_WERROR=0       do not turn compiler warnings into errors
    OPUS_CPU_ONLY=1     leave CUDA sources out even where they could be built
    MAX_JOBS=N          number of compile jobs (all cores by default)
"""

import os
import sys
from pathlib import Path

from setuptools import find_packages, setup

try:
    import torch
    from torch.utils import cpp_extension
except ImportError as error:
    raise SystemExit(
        "setup.py needs an installed torch: run `make setup`, or install torch first and use "
        "`pip install -e . --no-build-isolation`"
    ) from error

ROOT = Path(__file__).resolve().parent
CSRC = Path("models", "csrc")  # relative: absolute source paths break build_ext --inplace caches


def is_enabled(variable: str, default: str) -> bool:
    return os.environ.get(variable, default) not in ("", "0")


def find_sources(suffix: str) -> list[str]:
    return sorted(path.relative_to(ROOT).as_posix() for path in (ROOT / CSRC).rglob(f"*{suffix}"))


def host_flags() -> list[str]:
    flags = ["-O3", "-g0", "-fopenmp", "-Wall", "-Wextra", "-fvisibility=hidden"]
    # Kernels and their plain-torch twins make the same decisions (which camera, which voxel) only
    # if no product is fused into a sum behind their back. Fast-math is out for the same reason.
    flags.append("-ffp-contract=off")
    if is_enabled("OPUS_WERROR", "1"):
        flags.append("-Werror")
    if is_enabled("OPUS_NATIVE_ARCH", "0"):
        flags.append("-march=native")
    # Torch's headers are not ours to keep free of warnings.
    for path in cpp_extension.include_paths():
        flags += ["-isystem", path]
    return flags


def openmp_link_flags() -> list[str]:
    # Torch's wheels bring an OpenMP runtime. A second one would run threads of its own, deaf to
    # torch.set_num_threads.
    bundled = sorted((Path(torch.__file__).parent / "lib").glob("libgomp*.so*"))
    return [str(bundled[0])] if bundled else ["-fopenmp"]


def native_extension() -> "cpp_extension.Extension":
    cpu_sources, cuda_sources = find_sources(".cpp"), find_sources(".cu")
    with_cuda = (
        bool(cuda_sources)
        and torch.version.cuda is not None
        and cpp_extension.CUDA_HOME is not None
        and not is_enabled("OPUS_CPU_ONLY", "0")
    )
    compile_args = {"cxx": host_flags()}
    kwargs = {}
    if with_cuda:
        compile_args["nvcc"] = ["-O3", "-lineinfo", "--fmad=false"]
        kwargs["define_macros"] = [("OPUS_WITH_CUDA", None)]
    extension_type = cpp_extension.CUDAExtension if with_cuda else cpp_extension.CppExtension
    return extension_type(
        name="models.ops._C",
        sources=cpu_sources + (cuda_sources if with_cuda else []),
        include_dirs=[str(ROOT / CSRC)],
        depends=find_sources(".h"),
        extra_compile_args=compile_args,
        extra_link_args=openmp_link_flags(),
        # The library registers its operations with torch's dispatcher and holds no Python code,
        # so one file serves every Python version.
        py_limited_api=True,
        **kwargs,
    )


# ninja installed into a virtual environment is found without activating it.
os.environ["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])

setup(
    name="opus-occupancy",
    version="0.1.0",
    description="Occupancy prediction from cameras with a sparse set of points (OPUS, OPUS-V2)",
    license="Apache-2.0",
    python_requires=">=3.10",
    packages=find_packages(include=["models", "models.*", "loaders", "loaders.*"]),
    package_data={"models.ops": ["_C*.so"]},
    ext_modules=[native_extension()],
    cmdclass={"build_ext": cpp_extension.BuildExtension},
    zip_safe=False,
)
