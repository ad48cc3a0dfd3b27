"""The machine as training sees it: one finding a part, each with what its lack costs and what mends it."""

import os
import platform
import resource
import shutil
import sys
import sysconfig
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Literal

import psutil
from packaging.requirements import Requirement

State = Literal["ok", "missing", "low"]
OLDEST_PYTHON = (3, 11)
GIB = 2**30
LEAST_DISK = 10 * GIB
LEAST_OPEN_FILES = 4096
DISTRIBUTION = "malmoi"
EXTRA_COSTS = {
    "eval": "no `malmoi fewshot`",
    "judge": "no `malmoi judge`",
    "dask": "preparation stays on one machine",
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
    mend: str = ""
    """A command, or what to do where no command does it."""
    is_required: bool = False
    """Whether nothing trains without it."""


def examine() -> list[Finding]:
    """Everything that decides what can run here."""
    parts: tuple[Callable[[], Iterator[Finding]], ...] = (
        _python,
        _packages,
        _torch,
        _memory,
        _deepspeed_and_compiler,
        _slurm,
        _disk,
        _open_files,
        _extras,
    )
    return [finding for part in parts for finding in part()]


def _python() -> Iterator[Finding]:
    oldest = ".".join(map(str, OLDEST_PYTHON))
    version = platform.python_version()
    if sys.version_info >= OLDEST_PYTHON:
        yield Finding("Python", "ok", f"{version} ({sys.executable})", is_required=True)
    else:
        mend = f"install Python {oldest} or newer and make the virtual environment with it"
        yield Finding("Python", "low", version, f"Malmoi needs {oldest}", mend, is_required=True)


def _lacks(requirements: list[Requirement]) -> list[str]:
    """Which of the packages are not installed, or not in the range asked for."""
    lacks = []
    for requirement in requirements:
        try:
            version = metadata.version(requirement.name)
        except metadata.PackageNotFoundError:
            lacks.append(requirement.name)
            continue
        if not requirement.specifier.contains(version, prereleases=True):
            lacks.append(f"{requirement} (here {version})")
    return lacks


def _requirements(extra: str | None) -> list[Requirement]:
    """What Malmoi itself asks for, or what `extra` adds."""
    parsed = [Requirement(line) for line in metadata.requires(DISTRIBUTION) or ()]
    if extra is None:
        return [entry for entry in parsed if entry.marker is None or entry.marker.evaluate({"extra": ""})]
    return [entry for entry in parsed if entry.marker is not None and entry.marker.evaluate({"extra": extra})]


def _packages() -> Iterator[Finding]:
    try:
        version, requirements = metadata.version(DISTRIBUTION), _requirements(None)
    except metadata.PackageNotFoundError:
        yield Finding("Malmoi", "missing", "not installed", "no `malmoi` outside its folder", "pip install .")
        return
    lacks = _lacks(requirements)
    if lacks:
        cost = "the commands that use them stop"
        yield Finding("Malmoi", "missing", f"{version}, without {', '.join(lacks)}", cost, "pip install .")
    else:
        yield Finding("Malmoi", "ok", f"{version} and its {len(requirements)} packages")


def _torch() -> Iterator[Finding]:
    try:
        import torch
    except (ImportError, OSError, RuntimeError) as error:
        reason = " ".join(str(error).split())[:200]
        yield Finding("torch", "missing", reason, "nothing trains", "pip install --force-reinstall torch", True)
        return
    yield Finding("torch", "ok", torch.__version__, is_required=True)
    yield from _gpus()
    yield from _cpu()


def _gpus() -> Iterator[Finding]:
    import torch

    from train.hardware import has_fast_bf16

    cost = "training runs on the CPU, which only small models suit"
    if not torch.cuda.is_available():
        if shutil.which("nvidia-smi") is None:
            found, mend = "none", "run on a machine with an NVIDIA GPU and its driver"
        elif torch.version.cuda is None:
            found = "there is a driver, but this torch is built without CUDA"
            mend = "pip install --force-reinstall torch --index-url https://download.pytorch.org/whl/cu130"
        else:
            found = f"a driver that torch for CUDA {torch.version.cuda} cannot use"
            mend = "nvidia-smi  # shows the driver's CUDA version: update the driver, or install a torch for it"
        yield Finding("GPU", "missing", found, cost, mend)
        return
    for number in range(torch.cuda.device_count()):
        properties = torch.cuda.get_device_properties(number)
        half = (
            "bf16 and fp16" if has_fast_bf16(torch.device("cuda", number)) else "fp16 with loss scaling, no fast bf16"
        )
        yield Finding(f"GPU {number}", "ok", f"{properties.name}, {properties.total_memory / GIB:.0f} GiB, {half}")
    if shutil.which("nvcc") is None and not os.environ.get("CUDA_HOME"):
        cost = "DeepSpeed's own GPU kernels cannot be built; torch's are used"
        mend = f"install the CUDA toolkit {torch.version.cuda} and set CUDA_HOME to it"
        yield Finding("CUDA compiler", "missing", "no nvcc, no CUDA_HOME", cost, mend)


def _cpu() -> Iterator[Finding]:
    import torch

    from train.hardware import has_fast_bf16

    cores = f"{len(os.sched_getaffinity(0))} cores" if hasattr(os, "sched_getaffinity") else f"{os.cpu_count()} cores"
    if has_fast_bf16(torch.device("cpu")):
        yield Finding("CPU", "ok", f"{cores}, bf16 in hardware")
    else:
        yield Finding("CPU", "ok", f"{cores}, no avx512_bf16 or amx: trains in fp32")


def _memory() -> Iterator[Finding]:
    memory = psutil.virtual_memory()
    yield Finding("memory", "ok", f"{memory.available / GIB:.1f} of {memory.total / GIB:.1f} GiB free")


def _deepspeed_and_compiler() -> Iterator[Finding]:
    try:
        yield Finding("DeepSpeed", "ok", metadata.version("deepspeed"))
    except metadata.PackageNotFoundError:
        yield Finding("DeepSpeed", "missing", "not installed", "no ZeRO", "pip install deepspeed")
    compiler = shutil.which(os.environ.get("CXX", "c++")) or shutil.which("g++")
    headers = Path(sysconfig.get_path("include")) / "Python.h"
    offload = "DeepSpeed cannot build its CPU kernels: no optimiser offloaded to the CPU"
    compiled = f"no train.compile, and on a GPU a loss that takes more than twice as long; {offload}"
    found_headers = headers.name if headers.is_file() else None
    for what, found, cost, mend in (
        ("C++ compiler", compiler, compiled, "apt-get install -y g++"),
        ("ninja", shutil.which("ninja"), offload, _ninja_mend()),
        ("Python headers", found_headers, compiled, "apt-get install -y python3-dev"),
    ):
        if found:
            yield Finding(what, "ok", found)
        else:
            yield Finding(what, "missing", "not found", cost, mend)


def _ninja_mend() -> str:
    """DeepSpeed calls ninja by name, and a virtual environment that is not activated is not on the path."""
    beside = Path(sys.executable).parent
    return f'export PATH="{beside}:$PATH"' if (beside / "ninja").is_file() else "pip install ninja"


def _slurm() -> Iterator[Finding]:
    lacks = [command for command in ("sbatch", "scontrol") if shutil.which(command) is None]
    if lacks:
        cost = "no job of several machines can be submitted from here"
        mend = "run on a login node of the cluster, or: apt-get install -y slurm-client"
        yield Finding("Slurm", "missing", f"no {' and no '.join(lacks)}", cost, mend)
    else:
        yield Finding("Slurm", "ok", str(shutil.which("sbatch")))


def _disk() -> Iterator[Finding]:
    here = Path.cwd()
    usage = shutil.disk_usage(here)
    found = f"{usage.free / GIB:.1f} of {usage.total / GIB:.1f} GiB free at {here}"
    if usage.free >= LEAST_DISK:
        yield Finding("disk", "ok", found)
    else:
        cost = "a checkpoint has 12 bytes a parameter, and three lie there while one is saved"
        yield Finding("disk", "low", found, cost, "free some, or put the run elsewhere with --run")


def _open_files() -> Iterator[Finding]:
    limit, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    if limit == resource.RLIM_INFINITY or limit >= LEAST_OPEN_FILES:
        yield Finding("open files", "ok", "no limit" if limit == resource.RLIM_INFINITY else f"{limit:,} at a time")
        return
    wanted = 65536 if most == resource.RLIM_INFINITY else min(65536, most)
    cost = f"each shard holds two open: more than about {limit // 2:,} shards cannot be read"
    yield Finding("open files", "low", f"{limit:,} at a time", cost, f"ulimit -n {wanted}")


def _extras() -> Iterator[Finding]:
    try:
        extras = metadata.metadata(DISTRIBUTION).get_all("Provides-Extra") or []
    except metadata.PackageNotFoundError:
        return
    for extra in extras:
        lacks = _lacks(_requirements(extra))
        if lacks:
            cost = EXTRA_COSTS.get(extra, f"what needs {', '.join(lacks)} stops")
            yield Finding(f"extra {extra}", "missing", f"without {', '.join(lacks)}", cost, f"pip install '.[{extra}]'")
        else:
            yield Finding(f"extra {extra}", "ok", "installed")
