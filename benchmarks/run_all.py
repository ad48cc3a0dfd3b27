"""Every benchmark of the project, one after another, and what they say as one JSON file and as tables.

    python benchmarks/run_all.py [--quick] [--only training memory ...] [--out runs/benchmarks] [--write PAGE]
    python benchmarks/run_all.py --device cuda ...

Each runs as a process of its own; the last line of its output is one JSON object. OUT/cpu.json holds them with the
command, the seconds, the machine, the versions and the commit; what was measured before and is not run now stays.
--write replaces the tables of docs/performance.md by them. --device cuda runs those that ask something of a GPU, into
OUT/cuda.json and tables of their own. --quick shows that all of them run, in minutes, and measures
nothing worth having. Nothing else should run on the machine meanwhile.
"""

import argparse
import json
import os
import subprocess
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from benchmarks.figure_tables import figure_tables
from benchmarks.page_tables import write_tables
from train.run_folder import environment

SCRIPT = "run_all.py"
DEMO_TEXT = [str(file) for file in sorted((ROOT / "data_prep" / "demo_text").glob("*.jsonl.gz"))]


@dataclass(frozen=True)
class Benchmark:
    """A script beside this one, and its options."""

    quick: tuple[str, ...]
    full: tuple[str, ...] = ()
    script: str | None = None
    """None: that of the benchmark's name."""


BENCHMARKS = {
    "prepare": Benchmark(
        ("--corpus", *DEMO_TEXT, "--megabytes", "1"),
        ("--corpus", *DEMO_TEXT, "--fill", "40", "--rounds", "3", "--repeat", "200"),
    ),
    "training": Benchmark(("--quick",), ("--steps", "4", "--rounds", "5")),
    "training in bf16": Benchmark(
        ("--quick", "--precision", "bf16"), ("--precision", "bf16", "--steps", "4", "--rounds", "5"), "training"
    ),
    "memory": Benchmark(("--quick",)),
    "startup": Benchmark(("--quick",)),
    "step_profile": Benchmark(("--quick",)),
    "step_profile in bf16": Benchmark(("--quick", "--precision", "bf16"), ("--precision", "bf16"), "step_profile"),
    "step_profile of 124M in bf16": Benchmark(
        ("--quick", "--precision", "bf16"),
        ("--precision", "bf16", "--shape", "124M", "--batch", "2", "--steps", "2"),
        "step_profile",
    ),
    "step_forms": Benchmark(("--quick",)),
    "step_forms in bf16": Benchmark(("--quick", "--precision", "bf16"), ("--precision", "bf16"), "step_forms"),
    "overhead": Benchmark(("--layers", "1", "--width", "64", "--steps", "2", "--rounds", "2")),
    "checkpoint": Benchmark(("--layers", "1", "--width", "64", "--vocab", "2000", "--rounds", "1")),
    "resume": Benchmark(("--steps", "0", "10", "--most", "10", "--rounds", "1")),
    "scaling": Benchmark(("--quick",), ("--steps", "3", "--rounds", "5")),
    "generation": Benchmark(("--quick",)),
    "learning": Benchmark(("--quick",)),
}
GPU = ("--device", "cuda", "--precision", "bf16")
SIDES = ("--only", "malmoi+compile", "trainer+compile", "plain+compile")
GPU_BENCHMARKS = {
    "training": Benchmark(
        ("--quick", *GPU), (*GPU, "--shape", "124M", "--batch", "32", "--steps", "10", "--rounds", "5", *SIDES)
    ),
    "memory": Benchmark(("--quick", *GPU), (*GPU, "--shape", "124M", "--batch", "8")),
    "step_profile": Benchmark(
        ("--quick", "--compile", *GPU), (*GPU, "--compile", "--shape", "124M", "--batch", "64", "--steps", "5")
    ),
    "step_forms": Benchmark(("--quick", *GPU), (*GPU, "--shape", "124M", "--batch", "64")),
}
BY_DEVICE = {"cpu": BENCHMARKS, "cuda": GPU_BENCHMARKS}
MARKERS = {"cpu": SCRIPT, "cuda": f"{SCRIPT} --device cuda"}
"""Of the tables of each device."""
ELSEWHERE = {
    "finetune": "needs a pre-trained model; its figures stand in docs/results.md",
    "encode": "needs a tokenizer; prepare times the same kernel in its place",
    "backends": "arithmetic, for docs/launch.md",
    "scaling_model": "the functions of scaling",
    "learning_recipes": "what learning trains",
    "page_tables": "writes tables",
    "figure_tables": "writes tables",
    "results_tables": "writes tables",
    "learning_tables": "writes tables",
    "run_all": "this one",
}
"""Scripts that are not run, and why."""


@dataclass(frozen=True)
class Measured:
    """What a benchmark said."""

    command: str
    commit: str
    seconds: float
    environment: dict[str, str | int | None]
    figures: dict[str, Any]


def processor(device: str) -> str:
    """The GPU's name, or the processor's with its wide units, where the kernel tells them."""
    if device == "cuda":
        import torch

        return torch.cuda.get_device_name()
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except FileNotFoundError:
        return "unknown"
    name = next((line.split(": ")[1] for line in lines if line.startswith("model name")), "unknown")
    flags = next((line.split() for line in lines if line.startswith("flags")), [])
    units = [flag for flag in ("avx512f", "avx512_bf16", "amx_bf16") if flag in flags]
    return f"{name} with {', '.join(units)}" if units else f"{name} without avx512"


def commit() -> str:
    told = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    return told.stdout.strip() or "unknown"


def measured(name: str, script: str, options: tuple[str, ...], device: str) -> Measured:
    """Run a benchmark, its output shown as it comes.

    Raises:
        SystemExit: it failed, or its last line is no JSON object.
    """
    command = [sys.executable, str(ROOT / "benchmarks" / f"{script}.py"), *options]
    began = time.perf_counter()
    lines = []
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=ROOT) as process:
        assert process.stdout is not None
        for line in process.stdout:
            print(line, end="", flush=True)
            lines.append(line)
    if process.returncode or not lines:
        sys.exit(f"{name}: ended with {process.returncode}")
    shown = " ".join(["python", f"benchmarks/{script}.py", *(option.removeprefix(f"{ROOT}/") for option in options)])
    machine = {**environment(), "processor": processor(device), "threads": os.environ.get("OMP_NUM_THREADS")}
    return Measured(shown, commit(), round(time.perf_counter() - began, 1), machine, json.loads(lines[-1]))


def tables(results: dict[str, Measured]) -> str:
    """One a benchmark, under its command, machine and commit."""
    lines = []
    for name, result in results.items():
        machine = result.environment
        lines += [
            f"### {name}",
            "",
            f"`{result.command}`: {result.seconds:,.0f} s at {result.commit} on {machine['processor']},",
        ]
        lines += [f"{machine['cores']} cores, torch {machine['torch']}.", "", *figure_tables(result.figures)]
    return "\n".join(lines).rstrip()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="small sizes: shows that each runs")
    parser.add_argument("--only", nargs="+", choices=BENCHMARKS, help="none: all of the device's")
    parser.add_argument("--device", choices=BY_DEVICE, default="cpu")
    parser.add_argument("--out", type=Path, default=ROOT / "runs" / "benchmarks")
    parser.add_argument("--write", type=Path, help="page whose tables are replaced")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    benchmarks = BY_DEVICE[options.device]
    file = options.out / f"{options.device}{'-quick' if options.quick else ''}.json"
    results = {}
    if file.is_file():
        results = {name: Measured(**plain) for name, plain in json.loads(file.read_text()).items()}
    for name in options.only or benchmarks:
        if name not in benchmarks:
            sys.exit(f"{name}: not on {options.device}; choose from {', '.join(benchmarks)}")
        benchmark = benchmarks[name]
        print(f"== {name}", flush=True)
        asked = benchmark.quick if options.quick else benchmark.full
        results[name] = measured(name, benchmark.script or name, asked, options.device)
        plain = {each: asdict(result) for each, result in results.items()}
        file.write_text(json.dumps(plain, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    if options.write is not None:
        write_tables(options.write, MARKERS[options.device], tables(results))
    print(f"{file}")


if __name__ == "__main__":
    main()
