"""Memory that a step frees stays with the process, for the next step."""

import ctypes

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3
"""Of glibc's malloc.h."""
NEVER, LARGE = -1, 2**25
"""Bytes at the end of the heap from which they are given back, and of a block that is allocated outside the heap: what
glibc's own adjustment ends at (mallopt(3), M_MMAP_THRESHOLD). Larger blocks could leave holes that nothing fills."""


def keep_freed_memory() -> bool:
    """Have this process's allocator keep its heap; return whether it can.

    After a step glibc returns the free end of the heap to the kernel, which zeroes each page again in the next one: on
    a CPU a tenth of a step (docs/performance.md). Keeping it costs little memory, since most of it is taken again.
    """
    allocator = ctypes.CDLL(None)
    if not hasattr(allocator, "gnu_get_libc_version"):
        return False
    return bool(allocator.mallopt(M_MMAP_THRESHOLD, LARGE)) and bool(allocator.mallopt(M_TRIM_THRESHOLD, NEVER))
