"""Importing torch and transformers: without Python's search for reference cycles, a quarter of the time that takes,
and so that Ctrl-C simply ends the process meanwhile."""

import gc
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def quick_imports() -> Iterator[None]:
    """Around imports of what stays to the end of the process.

    Python looks for cycles after every few hundred new objects, and modules are made of hundreds of thousands: they are
    left out of the search meanwhile, and of each later one, which ranks would wait for at different steps.

    Libraries in the midst of their import make errors of their own of the one that Ctrl-C raises.
    """
    was_on = gc.isenabled()
    gc.disable()
    raises = signal.getsignal(signal.SIGINT) is signal.default_int_handler
    ends = raises and threading.current_thread() is threading.main_thread()
    if ends:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    try:
        yield
    finally:
        if ends:
            signal.signal(signal.SIGINT, signal.default_int_handler)
        gc.freeze()
        if was_on:
            gc.enable()
