"""Where the time of a training step goes, by torch's profiler, and what the machine could do at best.

    python benchmarks/step_profile.py [--shape 14M] [--steps 4] [--threads N] [--quick]
    python benchmarks/step_profile.py --device cuda --precision bf16 --compile --shape 124M --batch 64

`Training.update` under the profiler, its operations' own time put into groups: the products of the blocks, attention,
the loss with its products, norms and activations and what else goes once over memory, the optimiser with clipping.
What the profiler does not see - Python, reading, checks - is `outside`. Beside it two floors of the same step, measured
in the same process: its products alone, as many as by the rule of 6 FLOP a parameter and token, at the speed that a
large product has here; and the bytes that it must at least move, at the speed of a large copy: what the forward pass
keeps, written once and read once, and 52 bytes a parameter. Of the parameters, in fp32: weights read forward, backward
and to update (12) and written (4), gradients written, read for their norm and to update (12), two moments read and
written (16), gradients read and written to clip them (8). On a GPU times are those of its kernels, and `outside` is
when it had none; its longest kernels are listed too. The last line is one JSON object.
"""

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "benchmarks")]

from sides.data import add_shape_options, asked_shape, prepared, set_threads

PRODUCTS = ("aten::addmm", "aten::mm", "aten::bmm", "aten::matmul", "aten::linear", "aten::addmm_")
BLOCKS, LOSS, OPTIMISER = "products of the blocks", "loss", "optimiser and clipping"
LOSS_WITHOUT_PRODUCTS = "loss but its products"
GROUPS = {
    "attention": ("scaled_dot_product", "flash_attention"),
    OPTIMISER: ("_fused_adamw", "vector_norm", "_foreach", "zero_grad", "Optimizer"),
    LOSS: ("log_softmax", "gather", "scatter", "exp_", "ChunkedNats", "nll_loss", "aten::sub_"),
}
"""A part of an operation's name decides; the rest is `norms, activations and the rest`."""
KERNELS = {
    "attention": ("sdpa", "fmha", "flash", "cudnn::fusion"),
    LOSS_WITHOUT_PRODUCTS: ("log_softmax", "SoftMax", "_loss_kernel"),
    OPTIMISER: ("multi_tensor_apply", "LpNorm"),
    "products": ("nvjet", "gemm", "cutlass", "xmma"),
}
"""Of a GPU, which have names of their own; the loss's products cannot be told from others there."""
REST = "norms, activations and the rest"
BYTES_A_PARAMETER = 52
LONGEST = 24
"""Kernels of a GPU that are listed."""


@dataclass(frozen=True)
class Part:
    """A group of operations: seconds a step, and their share of it."""

    part: str
    seconds: float
    share: float


@dataclass(frozen=True)
class Kernel:
    """One of a GPU's: how often it runs in a step, and its seconds then, all together."""

    kernel: str
    times: float
    seconds: float


@dataclass(frozen=True)
class Figures:
    """What a run of this script saw; speeds of this process, floors in seconds a step."""

    shape: dict[str, int]
    device: str
    precision: str
    compiled: bool
    threads: int
    step_seconds: float
    product_gflops_a_second: float
    copy_gigabytes_a_second: float
    floor_of_products: float
    floor_of_bytes: float
    parts: list[Part]
    kernels: list[Kernel] | None
    """Of a GPU, the longest."""


def group_of(name: str, shapes: Any, padded: int) -> str:
    """Where an operation belongs, by its name and the sizes of what it is given."""
    if name in PRODUCTS:
        # Only the output matrix has the vocabulary as a size.
        sizes = {size for shape in shapes or () for size in (shape if isinstance(shape, list) else ())}
        return LOSS if sizes & {padded} or max(sizes, default=0) > padded - 64 else BLOCKS
    return next((group for group, parts in GROUPS.items() if any(part in name for part in parts)), REST)


def fastest_seconds(work: Callable[[], object], device: str) -> float:
    """Of a few calls."""
    import torch

    best = float("inf")
    for _ in range(8):
        began = time.perf_counter()
        work()
        if device == "cuda":
            torch.cuda.synchronize()
        best = min(best, time.perf_counter() - began)
    return best


def product_speed(device: str, precision: str) -> float:
    """FLOP a second of a large product, of random numbers."""
    import torch

    size = 8192 if device == "cuda" else 1024
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    left = torch.randn(size, size, device=device, dtype=dtype)
    return float(2.0 * size**3 / fastest_seconds(lambda: left @ left, device))


def copy_speed(device: str) -> float:
    """Bytes a second, read and written, of a copy larger than any cache."""
    import torch

    source = torch.ones(2**28 if device == "cuda" else 2**26, device=device)
    target = torch.empty_like(source)
    return 2 * source.nbytes / fastest_seconds(lambda: target.copy_(source), device)


def is_kernel(event: Any) -> bool:
    """Whether it ran on a GPU itself; compiled graphs and optimisers stand there too, with the time of all in them."""
    from torch.autograd import DeviceType

    return event.device_type == DeviceType.CUDA and not event.key.startswith(("##", "ProfilerStep", "Optimizer."))


def seconds_by_group(seen: Any, padded: int, on_gpu: bool) -> dict[str, float]:
    """Of all that the profiler saw."""
    seconds: dict[str, float] = {}

    def add(group: str, microseconds: float) -> None:
        seconds[group] = seconds.get(group, 0.0) + microseconds / 1e6

    for event in seen.key_averages(group_by_input_shape=True):
        if not on_gpu:
            add(group_of(event.key, event.input_shapes, padded), event.self_cpu_time_total)
        elif is_kernel(event):
            own = [group for group, parts in KERNELS.items() if any(part in event.key for part in parts)]
            add(own[0] if own else REST, event.self_device_time_total)
    return seconds


def longest_kernels(seen: Any, steps: int) -> list[Kernel]:
    events = [event for event in seen.key_averages() if is_kernel(event)]
    events.sort(key=lambda event: -event.self_device_time_total)
    return [
        Kernel(
            event.key.split("(")[0].split("<")[0][:70],
            round(event.count / steps, 1),
            round(event.self_device_time_total / 1e6 / steps, 5),
        )
        for event in events[:LONGEST]
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_shape_options(parser, "14M")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--precision", choices=("fp32", "bf16"), default="fp32")
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--threads", type=int, help="none: one a core")
    parser.add_argument("--steps", type=int, default=4)
    options = parser.parse_args()
    shape, threads = asked_shape(options), set_threads(options.threads)
    steps, on_gpu = 1 if options.quick else options.steps, options.device == "cuda"

    import torch
    from torch.profiler import ProfilerActivity, profile

    from configs.command_line import parse_settings
    from configs.schema import RunSettings
    from train.display import TrainingDisplay
    from train.loop import Training
    from train.memory import activation_bytes
    from train.run_folder import prepare_run
    from train.session import ready
    from train.size import padded_vocabulary, parameter_count
    from train.throughput import flops_per_token

    padded = padded_vocabulary(shape.vocab)
    with tempfile.TemporaryDirectory() as name:
        work = prepared(Path(name), shape, options.device, options.precision)
        words = ["--config", work.config, "--run", str(Path(name) / "profiled")]
        words += ["--train.compile", str(options.compile).lower(), "--train.precision", options.precision]
        settings = parse_settings(RunSettings, words, "benchmark", "")
        made = ready(settings, prepare_run(settings))
        with TrainingDisplay(False) as display:
            training = Training(made.plan, made.backend, made.placement, display)
            display.start(0, made.plan.steps)

            def seconds_a_step() -> float:
                began = time.perf_counter()
                for _ in range(steps):
                    training.update()
                if on_gpu:
                    torch.cuda.synchronize()
                return (time.perf_counter() - began) / steps

            for _ in range(2):
                training.update()
            if on_gpu:
                torch.cuda.synchronize()
            # Without the profiler, which takes time of its own; its shares are what is taken from it.
            step_seconds = seconds_a_step()
            activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if on_gpu else [])]
            with profile(activities=activities, record_shapes=True) as seen:
                profiled = seconds_a_step()
    seconds = {group: taken / steps for group, taken in seconds_by_group(seen, padded, on_gpu).items()}
    if on_gpu:
        # Kernels are timed by the GPU, profiler or not; launching them is what the profiler slows.
        profiled = max(step_seconds, sum(seconds.values()))
    seconds["outside"] = max(0.0, profiled - sum(seconds.values()))
    parts = [
        Part(group, round(taken / profiled * step_seconds, 4), round(taken / profiled, 3))
        for group, taken in sorted(seconds.items(), key=lambda item: -item[1])
    ]
    tokens = shape.batch * shape.block
    products, copied = product_speed(options.device, options.precision), copy_speed(options.device)
    moved = BYTES_A_PARAMETER * parameter_count(settings.model, padded)
    moved += 2 * activation_bytes(
        settings.model,
        shape.vocab,
        settings.train,
        shape.batch,
        half=options.precision != "fp32",
        device_type=options.device,
    )
    figures = Figures(
        asdict(shape),
        options.device,
        options.precision,
        options.compile,
        threads,
        round(step_seconds, 3),
        round(products / 1e9, 1),
        round(copied / 1e9, 1),
        round(flops_per_token(settings.model, shape.vocab) * tokens / products, 3),
        round(moved / copied, 3),
        parts,
        longest_kernels(seen, steps) if on_gpu else None,
    )
    for kernel in figures.kernels or ():
        print(f"{kernel.kernel:70} x {kernel.times:6.1f} {1e3 * kernel.seconds:8.2f} ms")
    for part in parts:
        print(f"{part.part:34}{part.seconds:9.3f} s{part.share:8.1%}")
    print(f"{'a step':34}{figures.step_seconds:9.3f} s")
    print(f"{'its products alone':34}{figures.floor_of_products:9.3f} s at {products / 1e9:,.0f} GFLOP/s")
    print(f"{'its bytes alone':34}{figures.floor_of_bytes:9.3f} s at {copied / 1e9:,.1f} GB/s")
    print(json.dumps(asdict(figures)))


if __name__ == "__main__":
    main()
