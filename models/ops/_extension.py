"""Lookup and lazy loading of the native extension."""

from __future__ import annotations

import functools
import os
import threading
import warnings
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from models.errors import UserError

_FIX = "build it with `make setup` or `python setup.py build_ext --inplace`"

_lock = threading.RLock()
_loaded = False
_on_load: list[Callable[[], None]] = []


class ExtensionError(UserError, RuntimeError):
    """The native extension is missing, or was built from other sources or for another torch."""


def on_load(register: Callable[[], None]) -> Callable[[], None]:
    """Run `register` once, right after the library has been loaded (a decorator).

    Fake kernels and gradients attach to operations, which exist only after loading.
    """
    _on_load.append(register)
    return register


def library_path() -> Path | None:
    """Return the path of the built library, or None if it has not been built.

    The environment variable OPUS_EXTENSION overrides it, for example with a sanitizer build.
    """
    if other := os.environ.get("OPUS_EXTENSION"):
        return Path(other)
    candidates = sorted(Path(__file__).parent.glob("_C*.so"), key=lambda p: p.stat().st_mtime)
    return candidates[-1] if candidates else None


def load() -> None:
    """Load the library once.

    Raises:
        ExtensionError: the library is missing or does not fit the installed torch.
    """
    global _loaded
    with _lock:
        if _loaded:
            return
        path = library_path()
        if path is None:
            raise ExtensionError(f"the native extension models/ops/_C*.so is missing: {_FIX}")
        try:
            torch.ops.load_library(str(path))
        except OSError as error:
            raise ExtensionError(
                f"{path.name} does not load with torch {torch.__version__} ({error}): {_FIX}"
            ) from error
        try:
            for register in _on_load:
                register()
        except RuntimeError as error:
            raise ExtensionError(
                f"{path.name} is older than its sources ({str(error).splitlines()[0]}): {_FIX}"
            ) from error
        _loaded = True


def native(name: str) -> Any:
    """Return the native operation `opus::name`; load the library if necessary.

    Raises:
        ExtensionError: the library is missing, does not load, or is older than this operation.
    """
    if not _loaded:
        load()
    try:
        return getattr(torch.ops.opus, name)
    except AttributeError as error:
        raise ExtensionError(
            f"the native extension has no operation {name!r} because it is older than its sources: "
            f"{_FIX}"
        ) from error


# Dtypes accepted by GPU kernels that compute in single precision.
SINGLE_AND_HALF = (torch.float32, torch.float16, torch.bfloat16)


def runs_natively(name: str, tensor: Tensor, on_gpu: Collection[torch.dtype] | None = None) -> bool:
    """Return whether `opus::name` has a kernel for the device of `tensor`; warn once if not.

    A library built without a CUDA toolkit has no GPU kernels. The operation then falls back to
    its reference implementation, which is correct but slow.

    Args:
        name: The operation.
        tensor: Its first argument.
        on_gpu: Dtypes of `tensor` that the GPU kernels accept; None for all. Other dtypes fall
            back to the reference implementation.

    Raises:
        ExtensionError: the library is missing, does not load, or is older than this operation.
    """
    kind = tensor.device.type
    if kind != "cpu" and on_gpu is not None and tensor.dtype not in on_gpu:
        return False
    return _has_kernel(name, kind)


# A constant for torch.compile, which cannot trace torch's dispatcher.
@torch.compiler.assume_constant_result
def _has_kernel(name: str, kind: str) -> bool:
    return _look_for_kernel(name, kind)


# Cached, because the look-up takes about as long as a kernel launch.
@functools.cache
def _look_for_kernel(name: str, kind: str) -> bool:
    native(name)
    key = kind.upper()
    if key == "CPU" or torch._C._dispatch_has_kernel_for_dispatch_key(f"opus::{name}", key):
        return True
    warnings.warn(
        f"the native extension was built without {key}: operations fall back to slow plain torch; "
        "build it with a CUDA toolkit installed: python setup.py build_ext --inplace",
        stacklevel=5,
    )
    return False


def is_available() -> bool:
    """Return whether the native extension can be loaded."""
    try:
        load()
    except ExtensionError:
        return False
    return True
