"""Tensors that data workers and the main process share."""

from __future__ import annotations

from torch import Tensor

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
