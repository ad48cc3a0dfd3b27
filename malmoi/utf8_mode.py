"""Python in a locale that is not UTF-8: the names of Korean files and the words of a command line would not be text."""

import os
import sys


def restart_in_utf8_mode() -> None:
    """Start this program over in Python's UTF-8 mode (PEP 540), as the same process, unless its files are named in
    UTF-8 already. What it prints stays in the encoding of the terminal."""
    # The variable was set: the mode is on, or Python does not read its environment.
    if sys.getfilesystemencoding() == "utf-8" or os.environ.get("PYTHONUTF8") == "1":
        return
    environment = {**os.environ, "PYTHONUTF8": "1"}
    if sys.stdout is not None:
        environment.setdefault("PYTHONIOENCODING", f"{sys.stdout.encoding}:backslashreplace")
    os.execve(sys.executable, [sys.executable, *sys.orig_argv[1:]], environment)
