"""Every benchmark of the project, one after another, and their figures as one JSON file and as tables.

    python benchmarks/run_all.py [--quick] [--only training memory ...] [--out runs/benchmarks] [--write PAGE]
    python benchmarks/run_all.py --device cuda ...
    python benchmarks/run_all.py --only --out benchmarks/results --write docs/performance.md    # runs nothing

Each runs as a process of its own; the last line of its output is one JSON object. OUT/cpu.json holds them with the
command, the seconds, the machine, the versions and the commit; what was measured before and is not run now stays.
--write replaces the tables of docs/performance.md by them. --device cuda runs those that measure a GPU, into
OUT/cuda.json and tables of their own. --quick shows that all of them run, in minutes, and measures
nothing worth having. Nothing else should run on the machine meanwhile.
"""

import json
import os
import subprocess
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from harness import ROOT, new_parser, parse_options
from tables import figure_tables, write_tables

from malmoi.train.run_dir import environment

SCRIPT = "run_all.py"


@dataclass(frozen=True)
class Benchmark:
    """A script beside this one, and its options."""

    always: tuple[str, ...] = ()
    full: tuple[str, ...] = ()
    """Without --quick."""
    script: str | None = None
    """None: that of the benchmark's name."""


BF16 = ("--precision", "bf16")
BENCHMARKS = {
    "prepare": Benchmark(full=("--fill", "40", "--rounds", "3", "--repeat", "200")),
    "training": Benchmark(full=("--steps", "4", "--rounds", "5")),
    "training in bf16": Benchmark(BF16, ("--steps", "4", "--rounds", "5"), "training"),
    "memory": Benchmark(),
    "startup": Benchmark(),
    "step_profile": Benchmark(),
    "step_profile in bf16": Benchmark(BF16, (), "step_profile"),
    "step_profile of 124M in bf16": Benchmark(
        BF16, ("--shape", "124M", "--batch", "2", "--steps", "2"), "step_profile"
    ),
    "step_forms": Benchmark(),
    "step_forms in bf16": Benchmark(BF16, (), "step_forms"),
    "overhead": Benchmark(),
    "checkpoint": Benchmark(),
    "resume": Benchmark(),
    "scaling": Benchmark(full=("--steps", "3", "--rounds", "5")),
    "generation": Benchmark(),
    "encode": Benchmark(),
    "learning": Benchmark(),
    "busy_machine": Benchmark(),
    "muon_sharing": Benchmark(),
}
GPU = ("--device", "cuda", *BF16)
SIDES = ("--only", "malmoi+compile", "trainer+compile", "plain+compile")
GPU_BENCHMARKS = {
    "training": Benchmark(GPU, ("--shape", "124M", "--batch", "32", "--steps", "10", "--rounds", "5", *SIDES)),
    "memory": Benchmark(GPU, ("--shape", "124M", "--batch", "8")),
    "step_profile": Benchmark((*GPU, "--compile"), ("--shape", "124M", "--batch", "64", "--steps", "5")),
    "step_forms": Benchmark(GPU, ("--shape", "124M", "--batch", "64")),
}
BY_DEVICE = {"cpu": BENCHMARKS, "cuda": GPU_BENCHMARKS}
MARKERS = {"cpu": SCRIPT, "cuda": f"{SCRIPT} --device cuda"}
"""Of the tables of each device."""
ELSEWHERE = {
    "finetune": "needs a pre-trained model; its figures are in docs/results.md",
    "decontamination": "needs a corpus; its figures are in docs/data.md",
    "backends": "arithmetic, for docs/launch.md",
    "fake_ranks": "counts bytes, for docs/launch.md",
    "scaling_model": "the functions of scaling",
    "learning_recipes": "what learning trains",
    "tables": "writes tables",
    "harness": "what all share",
    "run_all": "this one",
}
"""Scripts that are not run, and why."""


@dataclass(frozen=True)
class Measured:
    """The figures of a benchmark."""

    command: str
    commit: str
    seconds: float
    environment: dict[str, str | int | None]
    figures: dict[str, Any]


def processor(device: str) -> str:
    """Return the GPU's name, or the processor's with its wide units, where the kernel reports them."""
    if device == "cuda":
        import torch

        return torch.cuda.get_device_name()
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except FileNotFoundError:
        return "unknown"
    name = next((line.split(": ")[1] for line in lines if line.startswith("model name")), "unknown")
    flags = next((line.split() for line in lines if line.startswith("flags")), [])
    units = [flag for flag in ("avx512f", "avx512_bf16", "amx_bf16") if flag in flags]
    return f"{name} with {', '.join(units)}" if units else f"{name} without avx512"


def commit() -> str:
    command = ["git", "rev-parse", "--short", "HEAD"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, encoding="utf-8", check=False)
    return done.stdout.strip() or "unknown"


def measure(name: str, benchmark: Benchmark, device: str, is_quick: bool) -> Measured:
    """Run a benchmark, its output shown as it comes.

    Raises:
        SystemExit: it failed, or its last line is no JSON object.
    """
    words = [f"benchmarks/{benchmark.script or name}.py", *(["--quick"] if is_quick else benchmark.full)]
    words += benchmark.always
    began = time.perf_counter()
    lines = []
    with subprocess.Popen([sys.executable, *words], stdout=subprocess.PIPE, encoding="utf-8", cwd=ROOT) as process:
        assert process.stdout is not None
        for line in process.stdout:
            print(line, end="", flush=True)
            lines.append(line)
    if process.returncode or not lines:
        sys.exit(f"{name}: ended with {process.returncode}")
    machine = {**environment(), "processor": processor(device), "threads": os.environ.get("OMP_NUM_THREADS")}
    seconds = round(time.perf_counter() - began, 1)
    return Measured(" ".join(["python", *words]), commit(), seconds, machine, json.loads(lines[-1]))


def tables(results: dict[str, Measured]) -> str:
    """Return those of each benchmark, under its command, machine and commit."""
    lines = []
    for name, result in results.items():
        machine = result.environment
        lines += [
            f"### {name}",
            "",
            f"`{result.command}`: {result.seconds:,.0f} s at {result.commit} on {machine['processor']},",
            f"{machine['cores']} cores, torch {machine['torch']}.",
            "",
            *figure_tables(result.figures),
        ]
    return "\n".join(lines).rstrip()


def main() -> None:
    parser = new_parser(__doc__)
    parser.add_argument("--only", nargs="*", choices=BENCHMARKS, help="left out: all of the device's; empty: none")
    parser.add_argument("--device", choices=BY_DEVICE, default="cpu")
    parser.add_argument("--out", type=Path, default=ROOT / "runs" / "benchmarks")
    parser.add_argument("--write", type=Path, help="page whose tables are replaced")
    options = parse_options(parser)
    options.out.mkdir(parents=True, exist_ok=True)
    benchmarks = BY_DEVICE[options.device]
    file = options.out / f"{options.device}{'-quick' if options.quick else ''}.json"
    results = {}
    if file.is_file():
        results = {name: Measured(**plain) for name, plain in json.loads(file.read_text(encoding="utf-8")).items()}
    for name in benchmarks if options.only is None else options.only:
        if name not in benchmarks:
            sys.exit(f"{name}: not on {options.device}; choose from {', '.join(benchmarks)}")
        print(f"== {name}", flush=True)
        results[name] = measure(name, benchmarks[name], options.device, options.quick)
        plain = {each: asdict(result) for each, result in results.items()}
        file.write_text(json.dumps(plain, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    if options.write is not None:
        write_tables(options.write, MARKERS[options.device], tables(results))
    print(f"{file}")


if __name__ == "__main__":
    main()
