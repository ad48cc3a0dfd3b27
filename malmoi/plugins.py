"""Plugins: modules of the user's own that are imported first and register models, optimizers, readers, ..."""

import importlib
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path

from malmoi.errors import UserError, first_line


def load_plugins(names: Sequence[str], folder: str | None = None) -> None:
    """Import the modules `names`, in order; one that is imported already is left as it is.

    Work that is sent to another process brings the names along, and the folder, and that process calls this first.

    Args:
        names: module names as in an `import` statement, of installed packages or of modules in `folder`.
        folder: folder whose modules can be imported, as with `python -m`; none: the current one.

    Raises:
        UserError: a module is not found, or fails while it is imported; the message names it and the remedy.
    """
    if not names:
        return
    folder = folder or str(Path.cwd())
    if folder not in sys.path:
        sys.path.insert(0, folder)
        importlib.invalidate_caches()
    for name in names:
        try:
            importlib.import_module(name)
        except ModuleNotFoundError as error:
            if error.name is None or not f"{name}.".startswith(f"{error.name}."):
                raise _failure(name, error) from error
            remedy = "leave out the .py" if name.endswith(".py") else "run from its folder, or install its package"
            raise UserError(f"plugins: no module '{name}' in {folder} or among installed packages; {remedy}") from error
        except Exception as error:
            raise _failure(name, error) from error


def _failure(name: str, error: Exception) -> UserError:
    """Return the error for a module that raises `error`, with the innermost line of it that is neither Python's own nor
    of this folder."""
    frames = [
        frame
        for frame in traceback.extract_tb(error.__traceback__)
        if "importlib" not in frame.filename and Path(frame.filename).parent != Path(__file__).parent
    ]
    place = f" at {frames[-1].filename}:{frames[-1].lineno}" if frames else ""
    what = f"{type(error).__name__}: {first_line(error)}"
    return UserError(f"plugins: '{name}' fails while it is imported{place} ({what}); fix it, or leave it out")
