"""Operations of `models.ops` that the models call, and how to replace them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any
from unittest import mock

from models import ops

# All operations the models use from models.ops; each has a plain-torch reference implementation.
OPERATIONS = (
    "adaptive_mixing",
    "distance_attention",
    "farthest_point_sampling",
    "multi_view_sampling",
    "nearest_neighbor",
    "build_kernel_map",
    "sigmoid_focal_loss",
    "sparse_conv",
    "unique_voxels",
    "voxel_max",
    "winograd_conv",
)


@contextmanager
def replaced_operations(replacements: Mapping[str, Callable[..., Any]]) -> Iterator[None]:
    """Replace operations that the models call by other functions with the same arguments.

    Args:
        replacements: Functions by the operation's name in `models.ops`.
    """
    with ExitStack() as stack:
        for name, function in replacements.items():
            stack.enter_context(mock.patch.object(ops, name, function))
        yield


@contextmanager
def plain_operations() -> Iterator[None]:
    """Replace the operations the models use by their plain-torch reference implementations."""
    with replaced_operations({name: getattr(ops, f"{name}_reference") for name in OPERATIONS}):
        yield
