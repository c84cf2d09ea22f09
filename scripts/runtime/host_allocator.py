"""Settings of the C library's memory allocator."""

from __future__ import annotations

import ctypes

# Options of glibc's mallopt (malloc.h).
M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_THRESHOLD = -1, -2, -3
SETTINGS = {
    M_MMAP_THRESHOLD: 32 << 20,  # the largest value that glibc accepts
    M_TRIM_THRESHOLD: 1 << 30,
    M_TOP_PAD: 64 << 20,
}


def keep_freed_memory() -> bool:
    """Configure the C library to keep freed blocks of up to 32 MB for reuse.

    By default, glibc returns large blocks to the system as soon as they are freed. Every training
    step on the CPU frees and allocates tensors of the same sizes, and the kernel would have to
    clear their pages each time.

    Returns:
        Whether the setting took effect; False on systems without glibc.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):
        return False
    return all([mallopt(option, value) for option, value in SETTINGS.items()])
