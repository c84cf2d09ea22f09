"""Build the native operations of `models/csrc` into `models/ops/_C*.so`.

    python setup.py build_ext --inplace          # in the source tree
    pip install -e . --no-build-isolation        # as an editable package

The CPU sources are always built. The CUDA sources are added if torch was built with CUDA, a CUDA
toolkit is found and there is a GPU to build for.

Environment switches:
    OPUS_NATIVE_ARCH=1  compile for this machine's processor (the library is then not portable;
                        the hot kernels choose AVX2 or AVX-512 at run time anyway)
    OPUS_WERROR=0       do not turn compiler warnings into errors
    OPUS_SANITIZE=1     check addresses and undefined behaviour at run time (scripts/sanitize.py)
    OPUS_CPU_ONLY=1     leave the CUDA sources out
    TORCH_CUDA_ARCH_LIST  GPU architectures to build for (default: those of this machine's GPUs;
                        set it, e.g. to "8.0;9.0", to build on a machine without a GPU)
    MAX_JOBS=N          number of compile jobs (all cores by default)
"""

import os
import runpy
import sys
from pathlib import Path

from setuptools import find_packages, setup

sys.path.insert(0, str(Path(__file__).resolve().parent))  # missing in isolated builds

try:
    import torch
    from torch.utils import cpp_extension
except ImportError as error:
    raise SystemExit(
        "setup.py needs an installed torch: run `make setup`, or install torch first and use "
        "`pip install -e . --no-build-isolation`"
    ) from error

from scripts.build import native_build


def is_enabled(variable: str) -> bool:
    return os.environ.get(variable, "0") not in ("", "0")


def host_flags() -> list[str]:
    flags = ["-O3", "-g0", "-fopenmp", "-fvisibility=hidden", native_build.NO_FUSED_HOST]
    flags += native_build.warning_flags()
    if is_enabled("OPUS_SANITIZE"):
        flags += native_build.SANITIZER_FLAGS
    if is_enabled("OPUS_NATIVE_ARCH"):
        flags.append("-march=native")
    # Warnings in torch's headers cannot be fixed here.
    for path in cpp_extension.include_paths():
        flags += ["-isystem", path]
    return flags


def link_flags() -> list[str]:
    return openmp_link_flags() + (
        ["-fsanitize=address,undefined"] if is_enabled("OPUS_SANITIZE") else []
    )


def openmp_link_flags() -> list[str]:
    # Torch's wheels include an OpenMP runtime. A second one would run its own threads, which ignore
    # torch.set_num_threads.
    bundled = sorted((Path(torch.__file__).parent / "lib").glob("libgomp*.so*"))
    return [str(bundled[0])] if bundled else ["-fopenmp"]


def toolkit_to_use() -> "Path | None":
    """Return the CUDA toolkit for the CUDA sources; None leaves them out."""
    if torch.version.cuda is None or is_enabled("OPUS_CPU_ONLY"):
        return None
    # PyPI's torch is a CUDA build on every machine, with or without a GPU.
    if not torch.cuda.is_available() and not os.environ.get("TORCH_CUDA_ARCH_LIST"):
        print("setup.py: no GPU found and TORCH_CUDA_ARCH_LIST not set, building for the CPU only")
        return None
    try:
        toolkit = native_build.find_cuda_home(torch.version.cuda)
    except ValueError as error:
        raise SystemExit(f"setup.py: {error}") from error
    if toolkit is None:
        print(
            f"setup.py: no toolkit of torch's CUDA {torch.version.cuda} found, building for the "
            "CPU only; CUDA tensors will use the reference implementations. Install one, or set "
            "CUDA_HOME"
        )
    return toolkit


def native_extension() -> "cpp_extension.Extension":
    toolkit = toolkit_to_use()
    compile_args = {"cxx": host_flags()}
    sources, kwargs = native_build.cpu_sources(), {}
    if toolkit is not None:
        cpp_extension.CUDA_HOME = str(toolkit)
        build = native_build.ROOT / "build" / "cuda_libraries"
        kwargs["library_dirs"] = [str(native_build.cuda_library_folder(toolkit, build))]
        compile_args["nvcc"] = native_build.nvcc_flags()
        sources = sources + native_build.cuda_sources()
        kwargs["define_macros"] = [("OPUS_WITH_CUDA", None)]
        # Nor can warnings in CUDA's headers.
        compile_args["cxx"] += ["-isystem", str(toolkit / "include")]
    extension_type = cpp_extension.CUDAExtension if toolkit else cpp_extension.CppExtension
    return extension_type(
        name="models.ops._C",
        sources=sources,
        include_dirs=[str(native_build.ROOT / native_build.CSRC)],
        depends=native_build.find_sources(".h") + native_build.find_sources(".cuh"),
        extra_compile_args=compile_args,
        extra_link_args=link_flags(),
        # The library registers its operations with torch's dispatcher and contains no Python code,
        # so that one file works with every Python version.
        py_limited_api=True,
        **kwargs,
    )


# ninja installed into a virtual environment is found without activating it.
os.environ["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])

setup(
    name="opus-occupancy",
    version=runpy.run_path(str(native_build.ROOT / "models" / "version.py"))["__version__"],
    description="Occupancy prediction from cameras with a sparse set of points (OPUS, OPUS-V2)",
    license="Apache-2.0",
    python_requires=">=3.10",
    packages=find_packages(include=["models*", "loaders*", "scripts*"]),
    package_data={"models.ops": ["_C*.so"]},
    ext_modules=[native_extension()],
    cmdclass={"build_ext": cpp_extension.BuildExtension},
    zip_safe=False,
)
