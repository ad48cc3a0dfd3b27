"""Functions compiled by numba, without the GIL.

A file of its own: numba's cache notices changes by the file of a compiled function, so `bpe_kernel` holds compiled
functions and what they read, and nothing else.
"""

import functools
from collections.abc import Callable
from typing import ParamSpec, TypeVar, cast

import numba

P = ParamSpec("P")
R = TypeVar("R")


def inner(function: Callable[P, R]) -> Callable[P, R]:
    """Compile a function that only compiled functions call."""
    return cast(Callable[P, R], numba.njit(nogil=True, error_model="numpy")(function))


def entry(function: Callable[P, R]) -> Callable[P, R]:
    """Compile a function at its first call, and keep the machine code for later processes where there is a
    folder for it: the source's `__pycache__`, else numba's in the user's cache folder, else none.

    numba takes what it kept for stale when the file of this function changes. A function that it calls and a
    constant that it reads must therefore be in the same file.
    """
    try:
        compiled = cast(Callable[P, R], numba.njit(nogil=True, error_model="numpy", cache=True)(function))
    except RuntimeError:  # numba finds no folder that it may write to
        return inner(function)

    @functools.wraps(function)
    def call(*args: P.args, **kwargs: P.kwargs) -> R:
        try:
            return compiled(*args, **kwargs)
        except OSError:  # no room on the disk: compiled and ready to be called, but not kept
            return compiled(*args, **kwargs)

    return call
