"""Importing torch and transformers without Python's search for reference cycles, a quarter of the time that takes."""

import gc
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def quick_imports() -> Iterator[None]:
    """Around imports of what stays to the end of the process.

    Python looks for cycles after every few hundred new objects, and modules are made of hundreds of thousands: they are
    left out of the search meanwhile, and of each later one, which ranks would wait for at different steps.
    """
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        if was_on:
            gc.enable()
