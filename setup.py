"""Builds the native operations of ``models/csrc`` into ``models/ops/_C*.so``.

    python setup.py build_ext --inplace          # in the source tree
    pip install -e . --no-build-isolation        # as an editable package

The CPU sources are always built. Where torch was built with CUDA and a CUDA toolkit is found, the
CUDA sources go into the same library.

Environment switches:
    OPUS_NATIVE_ARCH=1  compile for this machine's processor (the library is then not portable;
                        the hot kernels choose AVX2 at run time anyway)
    OPUS_WERROR=0       do not turn compiler warnings into errors
    OPUS_SANITIZE=1     check addresses and undefined behaviour at run time (scripts/sanitize.py)
    OPUS_CPU_ONLY=1     leave CUDA sources out even where they could be built
    TORCH_CUDA_ARCH_LIST  GPU architectures to build for (those of this machine by default)
    MAX_JOBS=N          number of compile jobs (all cores by default)
"""

import os
import sys
from pathlib import Path

from setuptools import find_packages, setup

sys.path.insert(0, str(Path(__file__).resolve().parent))  # isolated builds leave it out

try:
    import torch
    from torch.utils import cpp_extension
except ImportError as error:
    raise SystemExit(
        "setup.py needs an installed torch: run `make setup`, or install torch first and use "
        "`pip install -e . --no-build-isolation`"
    ) from error

from scripts import native_build


def is_enabled(variable: str) -> bool:
    return os.environ.get(variable, "0") not in ("", "0")


def host_flags() -> list[str]:
    flags = ["-O3", "-g0", "-fopenmp", "-fvisibility=hidden", native_build.NO_FUSED_HOST]
    flags += native_build.warning_flags()
    if is_enabled("OPUS_SANITIZE"):
        flags += native_build.SANITIZER_FLAGS
    if is_enabled("OPUS_NATIVE_ARCH"):
        flags.append("-march=native")
    # Torch's headers are not ours to keep free of warnings.
    for path in cpp_extension.include_paths():
        flags += ["-isystem", path]
    return flags


def link_flags() -> list[str]:
    return openmp_link_flags() + (
        ["-fsanitize=address,undefined"] if is_enabled("OPUS_SANITIZE") else []
    )


def openmp_link_flags() -> list[str]:
    # Torch's wheels bring an OpenMP runtime. A second one would run threads of its own, deaf to
    # torch.set_num_threads.
    bundled = sorted((Path(torch.__file__).parent / "lib").glob("libgomp*.so*"))
    return [str(bundled[0])] if bundled else ["-fopenmp"]


def native_extension() -> "cpp_extension.Extension":
    with_cuda = (
        torch.version.cuda is not None
        and cpp_extension.CUDA_HOME is not None
        and not is_enabled("OPUS_CPU_ONLY")
    )
    compile_args = {"cxx": host_flags()}
    sources, kwargs = native_build.cpu_sources(), {}
    if with_cuda:
        compile_args["nvcc"] = native_build.nvcc_flags()
        sources = sources + native_build.cuda_sources()
        kwargs["define_macros"] = [("OPUS_WITH_CUDA", None)]
        # Warnings of CUDA's own headers, too, are not ours.
        compile_args["cxx"] += ["-isystem", str(Path(cpp_extension.CUDA_HOME, "include"))]
    extension_type = cpp_extension.CUDAExtension if with_cuda else cpp_extension.CppExtension
    return extension_type(
        name="models.ops._C",
        sources=sources,
        include_dirs=[str(native_build.ROOT / native_build.CSRC)],
        depends=native_build.find_sources(".h") + native_build.find_sources(".cuh"),
        extra_compile_args=compile_args,
        extra_link_args=link_flags(),
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
