"""The compiler that `torch.compile` and Triton call while a model trains."""

import os
import shutil
import sysconfig
from pathlib import Path


def missing_compiler() -> str | None:
    """What `torch.compile`, and Triton, lack on this machine, or none."""
    compiler = os.environ.get("CXX", "g++")
    if shutil.which(compiler) is None:
        return f"no C++ compiler '{compiler}' on the PATH"
    headers = Path(sysconfig.get_paths()["include"]) / "Python.h"
    return None if headers.is_file() else f"no Python headers ({headers}, in a package like python3-dev)"
