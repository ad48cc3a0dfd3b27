"""How a process ends that has trained: by the system, before the interpreter takes itself apart."""

import atexit
import os
import sys
from collections.abc import Callable
from contextlib import suppress
from typing import NoReturn

from malmoi.errors import EXIT_DONE, EXIT_FAILED


def run_to_end(main: Callable[[], int]) -> NoReturn:
    """Run `main` and end this process with the code that it returns.

    torch's process groups keep threads for as long as anything refers to a group, as DeepSpeed's modules and DDP's C++
    do. One that lets go of a tensor while the interpreter ends aborts the process, of a run that has succeeded. So once
    the interpreter has waited for its own threads and called what was registered for its end, the process ends.
    """
    code = EXIT_FAILED

    def end_at_once() -> None:
        if "torch" not in sys.modules:
            return
        for stream in (sys.stdout, sys.stderr):
            with suppress(OSError, ValueError, AttributeError):
                stream.flush()
        os._exit(code)

    # The first that is registered is the last that is called.
    atexit.register(end_at_once)
    try:
        code = main()
    except SystemExit as error:
        code = error.code if isinstance(error.code, int) else EXIT_DONE if error.code is None else EXIT_FAILED
        raise
    sys.exit(code)
