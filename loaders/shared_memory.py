"""Tensors that data workers and the main process share."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.utils.data import get_worker_info

from models.errors import UserError

MORE_SHARED_MEMORY = (
    "use fewer workers (num_workers of the data loader; with 0 none is needed), or make /dev/shm "
    "larger (docker run --shm-size=8g, mount -o remount,size=8g /dev/shm)"
)


class SharedMemoryError(UserError, RuntimeError):
    """The shared memory (/dev/shm) is full."""


def share(tensor: Tensor) -> Tensor:
    """Move a tensor to shared memory.

    Args:
        tensor: A tensor on the CPU; it is moved in place and returned.

    Raises:
        SharedMemoryError: There is no room for it.
    """
    try:
        return tensor.share_memory_()
    except (RuntimeError, OSError) as error:
        raise SharedMemoryError(
            "/dev/shm is full: remove files from it, or make it larger (docker run --shm-size=8g, "
            "mount -o remount,size=8g /dev/shm)"
        ) from error


def shared_empty(shape: Sequence[int], dtype: npt.DTypeLike) -> npt.NDArray[Any]:
    """Return an uninitialised array; in a data worker it is in shared memory.

    torch copies every tensor of a batch into shared memory before a worker sends it. Tensors that
    `as_tensor` makes from such arrays are sent without a copy.

    Args:
        shape: Shape of the array.
        dtype: Data type of the array.
    """
    if get_worker_info() is None:
        return np.empty(shape, dtype)
    size = int(np.prod(shape, dtype=np.int64)) * np.dtype(dtype).itemsize
    # torch's own collate function uses the same call.
    storage = torch.UntypedStorage._new_shared(max(size, 1))
    flat: Any = torch.empty(0, dtype=torch.uint8).set_(storage)  # type: ignore[call-overload]
    return flat.numpy()[:size].view(dtype).reshape(shape)


def as_tensor(array: npt.NDArray[Any]) -> Tensor:
    """Return a tensor over an array's memory, which is in shared memory if the array is.

    Args:
        array: Any array; an array of `shared_empty`, or its first rows, keeps its storage.
    """
    owner: Any = array.base
    while isinstance(owner, np.ndarray):
        owner = owner.base
    plain = torch.from_numpy(array)
    is_start = isinstance(owner, Tensor) and owner.data_ptr() == plain.data_ptr()
    if not is_start or not plain.is_contiguous() or not plain.numel():
        return plain
    tensor: Tensor = owner[: array.nbytes].view(plain.dtype).view(plain.shape)
    return tensor
