"""Permissions that hold for the root user too, as whom containers run tests."""

import ctypes
import os
from collections.abc import Iterator
from contextlib import contextmanager

CAPABILITY_VERSION = 0x20080522
IGNORES_PERMISSIONS = 1 << 1 | 1 << 2
"""CAP_DAC_OVERRIDE and CAP_DAC_READ_SEARCH, capabilities(7)."""


@contextmanager
def permissions_of_others() -> Iterator[None]:
    """Have this thread bound by the permissions of files for the block, whoever the user is."""
    libc = ctypes.CDLL(None, use_errno=True)
    header = (ctypes.c_uint32 * 2)(CAPABILITY_VERSION, 0)
    before, now = ((ctypes.c_uint32 * 6)() for _ in range(2))

    def call(function: str, sets: ctypes.Array[ctypes.c_uint32]) -> None:
        if getattr(libc, function)(header, sets):
            raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))

    call("capget", before)
    now[:] = before[:]
    now[0] &= ~IGNORES_PERMISSIONS
    call("capset", now)
    try:
        yield
    finally:
        call("capset", before)
