"""Which backend for which model and GPU: the table of docs/launch.md.

    python benchmarks/backends.py

For each preset and memory of a GPU, the first of the ways below that leaves a tenth of the memory free, on eight GPUs
in 16 bits, a sample at a time. What ddp and fsdp2 hold is counted on fake ranks (fake_ranks.py); what ZeRO does, which
does not run there, is computed as by `malmoi train --dry_run`.
"""

from dataclasses import dataclass, replace
from functools import cache

from fake_ranks import Layout, count

import malmoi
from malmoi.train.memory import state_size

PRESETS = ("gpt2-small", "gpt2-medium", "gpt2-large", "gpt2-xl", "gpt3-2.7b", "gpt3-6.7b", "gpt3-13b")
GIB_OF_A_GPU = (16, 24, 40, 80)
USABLE = 0.9
GPUS = 8


@dataclass(frozen=True)
class Way:
    """A backend, with or without activation checkpointing."""

    name: str
    layout: Layout
    is_counted: bool = True


WAYS = (
    Way("ddp", Layout("ddp", "ddp")),
    Way("zero1", Layout("zero1", "zero1"), is_counted=False),
    Way("fsdp2", Layout("fsdp2", "fsdp2")),
    Way("fsdp2 + checkpointing", Layout("fsdp2 + checkpointing", "fsdp2", checkpointing=True)),
)


@cache
def needed_gib(preset: str, way: Way, gpus: int) -> float:
    """Return the memory of one GPU that training takes, in GiB, at a micro-batch of one."""
    settings = malmoi.load_config(preset)
    if way.is_counted:
        return count(settings, way.layout, gpus).counted / 2**30
    spec, model, vocab_size = malmoi.MODELS["gpt2"], settings.model, settings.tokenizer.vocab_size
    train = replace(settings.train, activation_checkpointing=way.layout.checkpointing)
    state = state_size(spec, model, vocab_size, settings.optim.name).peak_bytes(way.layout.backend, gpus, half=True)
    return (state + spec.activation_bytes(model, vocab_size, train, 1, True, "cuda")) / 2**30


def cell(preset: str, memory: int) -> str:
    """Return the first way that fits on eight GPUs, or the fewest of them, in eights, that do."""
    for way in WAYS:
        if needed_gib(preset, way, GPUS) <= USABLE * memory:
            return way.name
    for gpus in (16, 32, 64, 128):
        if needed_gib(preset, WAYS[-1], gpus) <= USABLE * memory:
            return f"{WAYS[-1].name}, {gpus} GPUs"
    return "zero3_offload"


def table() -> list[str]:
    """Return the table in Markdown, a line each."""
    return [
        "| preset | parameters | " + " | ".join(f"{memory} GiB" for memory in GIB_OF_A_GPU) + " |",
        "| --- | --- |" + " --- |" * len(GIB_OF_A_GPU),
        *map(row, PRESETS),
    ]


def row(preset: str) -> str:
    """Return a preset's row of the table."""
    settings = malmoi.load_config(preset)
    parameters = malmoi.MODELS["gpt2"].num_params(settings.model, settings.tokenizer.vocab_size)
    size = f"{parameters / 1e9:.1f}B" if parameters > 1e9 else f"{parameters / 1e6:.0f}M"
    cells = " | ".join(cell(preset, memory) for memory in GIB_OF_A_GPU)
    return f"| `{preset}` | {size} | {cells} |"


if __name__ == "__main__":
    print("\n".join(table()))
