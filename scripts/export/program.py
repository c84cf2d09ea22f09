"""Compile a model into a package that needs no Python.

`torch.export` traces the functions with the project's native operations in them, AOTInductor
compiles the code between them, and both functions go into one package. At run time it needs
libtorch and the library of the operations, which registers them with torch's dispatcher.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from models.ops import ExtensionError, is_available
from models.ops.sparse_conv import KernelMap
from scripts.export.functions import (
    Function,
    functions_of,
    traced,
    without_warnings_of_torch,
)
from scripts.export.graphs import Layout, Voxels
from scripts.export.interface import geometry_tensors, lidar_facts
from scripts.export.source import Frame, Source
from scripts.runtime.atomic_write import write_atomically
from scripts.runtime.operations import replaced_operations

NAMES = {"_image": "image", "_decoder": "decoder"}
# The number of threads is that of the process that runs the package, not of the compiling one.
_OPTIONS: dict[str, Any] = {"aot_inductor.package": True, "cpp.dynamic_threads": True}


def program_functions(source: Source) -> list[Function]:
    """Return the functions of a package, image network and decoder."""
    return functions_of(source, Layout.CHANNELS_LAST, split=True)


def write_program(source: Source, functions: Sequence[Function], path: Path) -> Path:
    """Compile functions into one package.

    Args:
        source: The model, for the metadata in the package, as JSON.
        functions: Functions from `program_functions`.
        path: The `.pt2` file.

    Raises:
        ExtensionError: The native operations are not built.
        RuntimeError: There is no working C++ compiler.
    """
    from torch.export.pt2_archive._package import package_pt2

    if not is_available():
        raise ExtensionError(
            "the program calls the native operations, which are not built: run `make setup` or "
            "`python setup.py build_ext --inplace`"
        )
    files = {NAMES[function.suffix]: _compiled(function) for function in functions}
    facts = {"facts": json.dumps(source.facts() | lidar_facts(source))}
    return write_atomically(
        path, lambda file: package_pt2(str(file), aoti_files=files, extra_files=facts)
    )


@without_warnings_of_torch()
def _compiled(function: Function) -> list[Any]:
    with torch.no_grad(), program_operations():
        exported = traced(function)
    arguments, keywords = exported.example_inputs
    files = torch._inductor.aot_compile(
        exported.module(), arguments, keywords, options=dict(_OPTIONS)
    )
    assert isinstance(files, list)
    return files


def program_operations() -> AbstractContextManager[None]:
    """Call native operations directly if sizes depend on the data.

    The checks of arguments in `models.ops` need numbers that a trace does not have.
    """
    replacements: Mapping[str, Callable[..., Any]] = dict(
        build_kernel_map=traced_kernel_map,
        farthest_point_sampling=_farthest_point_sampling,
        sparse_conv=_sparse_conv,
        unique_voxels=_unique_voxels,
        voxel_max=_voxel_max,
    )
    return replaced_operations(replacements)


def _farthest_point_sampling(points: Tensor, num_samples: int) -> Tensor:
    index: Tensor = torch.ops.opus.farthest_point_sampling(points, [points.shape[0]], num_samples)
    return index[0]


def _unique_voxels(keys: Tensor, num_keys: int) -> tuple[Tensor, Tensor]:
    unique, inverse = torch.ops.opus.unique_voxels(keys, num_keys)
    torch._check(unique.shape[0] > 0)  # sets of voxels are not empty
    return unique, inverse


def _voxel_max(features: Tensor, voxel_index: Tensor, num_voxels: int) -> Tensor:
    maximum: Tensor = torch.ops.opus.voxel_max(features, voxel_index, num_voxels, False)[0]
    return maximum


def _sparse_conv(
    features: Tensor, weight: Tensor, bias: Tensor | None, kernel_map: KernelMap
) -> Tensor:
    pairs, starts = kernel_map.pairs, kernel_map.starts
    out: Tensor = torch.ops.opus.sparse_conv(
        features, weight, bias, pairs, kernel_map.pairs_by_in, starts, kernel_map.num_out
    )
    return out


def traced_kernel_map(
    coords: Tensor,
    spatial_shape: tuple[int, int, int],
    kernel_size: tuple[int, int, int],
    stride: tuple[int, int, int] = (1, 1, 1),
    padding: tuple[int, int, int] = (0, 0, 0),
    subm: bool = False,
) -> KernelMap:
    """Find the pairs of `models.ops.build_kernel_map`, for voxels in ascending order.

    Sorted by input or by output, the pairs then have the same order, and no value is read.
    """
    out_coords, _, pairs, starts = torch.ops.opus.kernel_map(
        coords, list(spatial_shape), list(kernel_size), list(stride), list(padding), subm
    )
    if not subm:
        torch._check(out_coords.shape[0] > 0)
    sizes = zip(spatial_shape, kernel_size, stride, padding, strict=True)
    d0, d1, d2 = ((size + 2 * pad - kernel) // step + 1 for size, kernel, step, pad in sizes)
    return KernelMap(
        coords if subm else out_coords,
        (d0, d1, d2),
        kernel_size,
        coords.shape[0],
        pairs,
        pairs,
        starts,
    )


class ProgramRunner:
    """Run a package from Python.

    Args:
        path: The `.pt2` file.
        num_cams: Cameras of a frame.
    """

    def __init__(self, path: Path, num_cams: int) -> None:
        from torch.export.pt2_archive._package import load_pt2

        assert is_available()  # registers the operations
        runners = load_pt2(str(path)).aoti_runners
        self.image, self.decoder = (runners[name] for name in NAMES.values())
        self.num_cams = num_cams

    @torch.no_grad()
    def __call__(self, frame: Frame) -> Voxels:
        """Predict; the frames go through the image network one by one."""
        # A compiled function does not look at the strides of its inputs.
        frames = [self.image(images) for images in frame.images.contiguous().split(self.num_cams)]
        levels = [torch.cat(level) for level in zip(*frames, strict=True)]
        given = (*levels, *geometry_tensors(frame))
        return Voxels(*self.decoder(*(tensor.contiguous() for tensor in given)))
