"""How the process holds its memory."""

from __future__ import annotations

import ctypes

# Options of glibc's mallopt (malloc.h).
M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_THRESHOLD = -1, -2, -3
SETTINGS = {
    M_MMAP_THRESHOLD: 32 << 20,  # the largest that glibc takes
    M_TRIM_THRESHOLD: 1 << 30,
    M_TOP_PAD: 64 << 20,
}


def keep_freed_memory() -> bool:
    """Have the C library keep freed blocks of up to 32 MB for the next use.

    By default glibc gives large blocks back to the system as soon as they are freed. A training
    step on the CPU frees and takes the same tensors every time, and then pays for the kernel
    clearing their pages again.

    Returns:
        Whether it will; not on systems without glibc.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):
        return False
    return all([mallopt(option, value) for option, value in SETTINGS.items()])
