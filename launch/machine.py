"""What this machine can do: a finding for each part, with what its lack costs and how to fix it.

Facts that decide nothing here are left to `ENVIRONMENT_REPORTS`.
"""

import os
import platform
import resource
import shutil
import sys
import sysconfig
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Literal

import psutil
from packaging.requirements import Requirement

State = Literal["ok", "missing", "low"]
ENVIRONMENT_REPORTS = ("python -m torch.utils.collect_env", "accelerate env", "ds_report")
"""Commands of the libraries that describe hardware, drivers and versions in full."""
OLDEST_PYTHON = (3, 11)
GIB = 2**30
MIN_DISK = 10 * GIB
MIN_OPEN_FILES = 4096
DISTRIBUTION = "malmoi"
EXTRA_COSTS = {
    "eval": "no `malmoi fewshot`",
    "judge": "no `malmoi judge`",
    "dask": "preparation stays on one machine",
    "docs": "no `make site`",
    "dev": "no `make test`",
}


@dataclass(frozen=True)
class Finding:
    """One part of the machine."""

    what: str
    state: State
    found: str
    cost: str = ""
    """What cannot be done without it; empty where nothing is missing."""
    fix: str = ""
    """A command, or what to do where no command does it."""
    is_required: bool = False
    """Whether nothing trains without it."""


def examine_machine() -> list[Finding]:
    """Return a finding for everything that decides what can run here."""
    parts = (_python, _packages, _torch, _programs, _disk, _open_files, _extras)
    return [finding for part in parts for finding in part()]


def _part(what: str, found: str | None, cost: str, fix: str, lack: str = "not found") -> Finding:
    """The finding of a part that is there or is missing."""
    return Finding(what, "ok", found) if found else Finding(what, "missing", lack, cost, fix)


def _python() -> Iterator[Finding]:
    oldest = ".".join(map(str, OLDEST_PYTHON))
    version = platform.python_version()
    if sys.version_info >= OLDEST_PYTHON:
        yield Finding("Python", "ok", f"{version} ({sys.executable})", is_required=True)
    else:
        fix = f"install Python {oldest} or newer and make the virtual environment with it"
        yield Finding("Python", "low", version, f"Malmoi needs {oldest}", fix, is_required=True)


def _unmet(extra: str | None = None) -> list[str]:
    """Packages that Malmoi or one of its extras requires and that are not installed, or not in the required version."""
    unmet = []
    for requirement in map(Requirement, metadata.requires(DISTRIBUTION) or ()):
        marker = requirement.marker
        is_of_extra = marker is not None and not marker.evaluate({"extra": ""})
        if is_of_extra != (extra is not None) or (marker is not None and not marker.evaluate({"extra": extra or ""})):
            continue
        try:
            version = metadata.version(requirement.name)
        except metadata.PackageNotFoundError:
            unmet.append(requirement.name)
            continue
        if not requirement.specifier.contains(version, prereleases=True):
            unmet.append(f"{requirement.name}{requirement.specifier} (here {version})")
    return unmet


def _packages() -> Iterator[Finding]:
    try:
        version, unmet = metadata.version(DISTRIBUTION), _unmet()
    except metadata.PackageNotFoundError:
        yield Finding("Malmoi", "missing", "not installed", "no `malmoi` outside its folder", "pip install .")
        return
    found = None if unmet else f"{version} and the packages that it requires"
    lack = f"{version}, without {', '.join(unmet)}"
    yield _part("Malmoi", found, "the commands that use them stop", "pip install .", lack)


def _extras() -> Iterator[Finding]:
    try:
        extras = metadata.metadata(DISTRIBUTION).get_all("Provides-Extra") or []
    except metadata.PackageNotFoundError:
        return
    for extra in extras:
        unmet = ", ".join(_unmet(extra))
        cost = EXTRA_COSTS.get(extra, f"what needs {unmet} stops")
        found = None if unmet else "installed"
        yield _part(f"extra {extra}", found, cost, f"pip install '.[{extra}]'", f"without {unmet}")


def _torch() -> Iterator[Finding]:
    try:
        import torch
    except (ImportError, OSError, RuntimeError) as error:
        reason = " ".join(str(error).split())[:200]
        yield Finding("torch", "missing", reason, "nothing trains", "pip install --force-reinstall torch", True)
        return
    from malmoi.thread_waiting import describe_threads
    from malmoi.train.distributed.device import has_fast_bf16

    yield Finding("torch", "ok", torch.__version__, is_required=True)
    yield from _gpus()
    precision = "bf16 in hardware" if has_fast_bf16(torch.device("cpu")) else "no avx512_bf16 or amx: trains in fp32"
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    memory = psutil.virtual_memory()
    free = f"{memory.available / GIB:.1f} of {memory.total / GIB:.1f} GiB of memory free"
    yield Finding("CPU", "ok", f"{cores} cores, {describe_threads()}, {free}, {precision}")


def _gpus() -> Iterator[Finding]:
    import torch

    from malmoi.train.distributed.device import has_fast_bf16

    if not torch.cuda.is_available():
        if shutil.which("nvidia-smi") is None:
            found, fix = "none", "run on a machine with an NVIDIA GPU and its driver"
        elif torch.version.cuda is None:
            found = "there is a driver, but this torch is built without CUDA"
            fix = "pip install --force-reinstall torch --index-url https://download.pytorch.org/whl/cu130"
        else:
            found = f"a driver that torch for CUDA {torch.version.cuda} cannot use"
            fix = "nvidia-smi  # shows the driver's CUDA version: update the driver, or install a torch for it"
        yield Finding("GPU", "missing", found, "training runs on the CPU, which only small models suit", fix)
        return
    for number in range(torch.cuda.device_count()):
        properties = torch.cuda.get_device_properties(number)
        has_bf16 = has_fast_bf16(torch.device("cuda", number))
        precision = "bf16 and fp16" if has_bf16 else "fp16 with loss scaling, no fast bf16"
        yield Finding(f"GPU {number}", "ok", f"{properties.name}, {properties.total_memory / GIB:.0f} GiB, {precision}")
    cost = "DeepSpeed's own GPU kernels cannot be built; torch's are used"
    fix = f"install the CUDA toolkit {torch.version.cuda} and set CUDA_HOME to it"
    yield _part("CUDA compiler", _cuda_home(), cost, fix)


def _cuda_home() -> str | None:
    """The CUDA toolkit that torch finds, with which DeepSpeed builds its kernels."""
    try:
        from torch.utils.cpp_extension import CUDA_HOME
    except ImportError:  # it needs setuptools, which not every torch requires
        return None
    return CUDA_HOME


def _programs() -> Iterator[Finding]:
    offload = "DeepSpeed cannot build its CPU kernels: no optimizer offloaded to the CPU"
    compiled = f"no train.compile, and on a GPU a loss that takes more than twice as long; {offload}"
    compiler = shutil.which(os.environ.get("CXX", "c++")) or shutil.which("g++")
    yield _part("C++ compiler", compiler, compiled, "apt-get install -y g++")
    # DeepSpeed calls ninja by name, and a virtual environment that is not activated is not on the path.
    beside = Path(sys.executable).parent
    fix = f'export PATH="{beside}:$PATH"' if (beside / "ninja").is_file() else "pip install ninja"
    yield _part("ninja", shutil.which("ninja"), offload, fix)
    headers = Path(sysconfig.get_path("include")) / "Python.h"
    yield _part(
        "Python headers", str(headers) if headers.is_file() else None, compiled, "apt-get install -y python3-dev"
    )
    lacks = [command for command in ("sbatch", "scontrol") if shutil.which(command) is None]
    yield _part(
        "Slurm",
        None if lacks else shutil.which("sbatch"),
        "no job of several machines can be submitted from here",
        "run on a login node of the cluster, or: apt-get install -y slurm-client",
        f"no {' and no '.join(lacks)}",
    )


def _disk() -> Iterator[Finding]:
    here = Path.cwd()
    usage = shutil.disk_usage(here)
    found = f"{usage.free / GIB:.1f} of {usage.total / GIB:.1f} GiB free at {here}"
    if usage.free >= MIN_DISK:
        yield Finding("disk", "ok", found)
    else:
        cost = "a checkpoint has 12 bytes a parameter, and there are three while one is saved"
        yield Finding("disk", "low", found, cost, "free some, or put the run elsewhere with --run")


def _open_files() -> Iterator[Finding]:
    limit, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    if limit == resource.RLIM_INFINITY or limit >= MIN_OPEN_FILES:
        yield Finding("open files", "ok", "no limit" if limit == resource.RLIM_INFINITY else f"{limit:,} at a time")
        return
    wanted = 65536 if most == resource.RLIM_INFINITY else min(65536, most)
    cost = f"each shard holds two open: more than about {limit // 2:,} shards cannot be read"
    yield Finding("open files", "low", f"{limit:,} at a time", cost, f"ulimit -n {wanted}")
