"""Where the time of a training step goes, by torch's profiler, and what the machine could do at best.

    python benchmarks/step_profile.py [--shape 14M] [--steps 4] [--threads N] [--quick]
    python benchmarks/step_profile.py --device cuda --precision bf16 --compile --shape 124M --batch 64

`Trainer.train_step` under the profiler, its operations' own time in groups: the products of the blocks, attention,
the loss with its products, norms and activations and what else goes once over memory, the optimizer with clipping.
What the profiler does not see - Python, reading, checks - is `outside`. Beside it two floors of the same step, measured
in the same process: its products alone, as many as by the rule of 6 FLOP a parameter and token, at the speed that a
large product has here; and the bytes that it must at least move, at the speed of a large copy: what the forward pass
keeps, written once and read once, and 52 bytes a parameter. Of the parameters, in fp32: weights read forward, backward
and to step (12) and written (4), gradients written, read for their norm and to step (12), two moments read and
written (16), gradients read and written to clip them (8). On a GPU times are those of its kernels, and `outside` is
when it had none; its longest kernels are listed too. The last line is one JSON object.
"""

import tempfile
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from harness import new_parser, parse_options, prepare_work, print_figures, seconds_of

import malmoi

PRODUCTS = ("aten::addmm", "aten::mm", "aten::bmm", "aten::matmul", "aten::linear", "aten::addmm_")
BLOCKS, LOSS, OPTIMIZER = "products of the blocks", "loss", "optimizer and clipping"
LOSS_WITHOUT_PRODUCTS = "loss but its products"
GROUPS = {
    "attention": ("scaled_dot_product", "flash_attention"),
    OPTIMIZER: ("_fused_adamw", "vector_norm", "_foreach", "zero_grad", "Optimizer"),
    LOSS: ("log_softmax", "gather", "scatter", "exp_", "ChunkedLossSum", "nll_loss", "aten::sub_"),
}
"""A part of an operation's name decides; the rest is `norms, activations and the rest`."""
KERNELS = {
    "attention": ("sdpa", "fmha", "flash", "cudnn::fusion"),
    LOSS_WITHOUT_PRODUCTS: ("log_softmax", "SoftMax", "_loss_kernel"),
    OPTIMIZER: ("multi_tensor_apply", "LpNorm"),
    "products": ("nvjet", "gemm", "cutlass", "xmma"),
}
"""Of a GPU, which have names of their own; the loss's products cannot be distinguished there."""
REST = "norms, activations and the rest"
BYTES_A_PARAMETER = 52
MOST_KERNELS = 24
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
    """What was measured; speeds of this process, floors in seconds a step."""

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
    """Return where an operation belongs, by its name and the sizes of what it is given."""
    if name in PRODUCTS:
        # Only the output matrix has the vocabulary as a size.
        sizes = {size for shape in shapes or () for size in (shape if isinstance(shape, list) else ())}
        return LOSS if sizes & {padded} or max(sizes, default=0) > padded - 64 else BLOCKS
    return next((group for group, parts in GROUPS.items() if any(part in name for part in parts)), REST)


def fastest_seconds(work: Callable[[], object], device: str) -> float:
    """Return the seconds of the fastest of a few calls."""
    return min(seconds_of(work, device) for _ in range(8))


def product_speed(device: str, precision: str) -> float:
    """Return the FLOP a second of a large product, of random numbers."""
    import torch

    size = 8192 if device == "cuda" else 1024
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    left = torch.randn(size, size, device=device, dtype=dtype)
    return float(2.0 * size**3 / fastest_seconds(lambda: left @ left, device))


def copy_speed(device: str) -> float:
    """Return the bytes a second, read and written, of a copy larger than any cache."""
    import torch

    source = torch.ones(2**28 if device == "cuda" else 2**26, device=device)
    target = torch.empty_like(source)
    return 2 * source.nbytes / fastest_seconds(lambda: target.copy_(source), device)


def is_kernel(event: Any) -> bool:
    """Return whether it ran on a GPU itself; compiled graphs and optimizers are listed there too, with all in them."""
    from torch.autograd import DeviceType

    return event.device_type == DeviceType.CUDA and not event.key.startswith(("##", "ProfilerStep", "Optimizer."))


def seconds_by_group(seen: Any, padded: int, on_gpu: bool) -> dict[str, float]:
    """Return the time of all that the profiler saw."""
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
        for event in events[:MOST_KERNELS]
    ]


def main() -> None:
    parser = new_parser(__doc__, "14M", has_device=True, steps=4)
    parser.add_argument("--compile", action="store_true")
    options = parse_options(parser)
    shape, steps, device = options.shape, options.steps, options.device
    on_gpu = device == "cuda"

    from torch.profiler import ProfilerActivity, profile

    from malmoi.train.models.spec import padded_vocabulary
    from malmoi.train.pretrain_run import build_pretraining
    from malmoi.train.run_dir import prepare_run

    with tempfile.TemporaryDirectory() as name:
        work = prepare_work(Path(name), shape, device, options.precision)
        settings = malmoi.load_config(work.config, run=Path(name) / "profiled", train={"compile": options.compile})
        trainer = build_pretraining(settings, prepare_run(settings)).trainer

        def train(count: int) -> None:
            for _ in range(count):
                trainer.train_step()

        seconds_of(lambda: train(2), device)
        # Without the profiler, which takes time of its own; its shares are what is taken from it.
        step_seconds = seconds_of(lambda: train(steps), device) / steps
        activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if on_gpu else [])]
        with profile(activities=activities, record_shapes=True) as seen:
            profiled = seconds_of(lambda: train(steps), device) / steps
    padded = padded_vocabulary(shape.vocab)
    seconds = {group: taken / steps for group, taken in seconds_by_group(seen, padded, on_gpu).items()}
    if on_gpu:
        # Kernels are timed by the GPU, profiler or not; launching them is what the profiler slows.
        profiled = max(step_seconds, sum(seconds.values()))
    seconds["outside"] = max(0.0, profiled - sum(seconds.values()))
    parts = [
        Part(group, round(taken / profiled * step_seconds, 4), round(taken / profiled, 3))
        for group, taken in sorted(seconds.items(), key=lambda item: -item[1])
    ]
    products, copied = product_speed(device, options.precision), copy_speed(device)
    model, spec, is_half = settings.model, malmoi.MODELS["gpt2"], options.precision != "fp32"
    kept = spec.activation_bytes(model, shape.vocab, settings.train, shape.batch, is_half, device)
    moved = BYTES_A_PARAMETER * spec.num_params(model, padded) + 2 * kept
    flops = spec.flops_per_token(model, shape.vocab) * shape.batch * shape.block
    print_figures(
        Figures(
            asdict(shape),
            device,
            options.precision,
            options.compile,
            options.threads,
            round(step_seconds, 3),
            round(products / 1e9, 1),
            round(copied / 1e9, 1),
            round(flops / products, 3),
            round(moved / copied, 3),
            parts,
            longest_kernels(seen, steps) if on_gpu else None,
        )
    )


if __name__ == "__main__":
    main()
