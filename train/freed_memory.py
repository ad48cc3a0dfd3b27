"""What a step frees stays with the process, for the next step to take again."""

import ctypes

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3
"""Of glibc's malloc.h."""
NEVER, LARGE = -1, 2**25
"""Bytes at the end of the heap from which they are given back, and of a block that lies outside the heap: what glibc's
own adjustment ends at (mallopt(3), M_MMAP_THRESHOLD). Larger blocks could leave holes that nothing fills."""


def keep_freed_memory() -> bool:
    """Have the allocator of this process keep its heap; whether it is one that can be told to.

    At the end of a step glibc gives the kernel back what is free at the end of the heap, and in the next one the kernel
    fills each page of it with zeros again when it is touched: on a processor a tenth of a step (docs/performance.md).
    Little more is held for it, since what is free is mostly taken again.
    """
    allocator = ctypes.CDLL(None)
    if not hasattr(allocator, "gnu_get_libc_version"):
        return False
    return bool(allocator.mallopt(M_MMAP_THRESHOLD, LARGE)) and bool(allocator.mallopt(M_TRIM_THRESHOLD, NEVER))
