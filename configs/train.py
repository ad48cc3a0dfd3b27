"""Settings of the training loop: batch, length, precision, ranks, and what happens when the loss diverges."""

from __future__ import annotations

from dataclasses import dataclass
from importlib.util import find_spec
from typing import Literal

from malmoi.configs.ranges import NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt, TwoOrMore
from malmoi.errors import UserError

Attention = Literal["sdpa", "eager", "flash_attention_2"]
Precision = Literal["auto", "fp32", "bf16", "fp16"]
BackendName = Literal["auto", "single", "ddp", "zero1", "zero2", "zero3", "fsdp2"] | str


@dataclass(frozen=True)
class TrainSettings:
    """The training loop: batch, length and arithmetic."""

    global_batch_size: PositiveInt = 512
    """Samples an optimizer step, over all ranks and accumulation steps."""
    micro_batch_size: PositiveInt | Literal["auto"] = 8
    """Samples in one forward pass of a rank; must divide global_batch_size / ranks. auto: the most that fit."""
    max_steps: PositiveInt | None = None
    """Optimizer steps in all; null: as many as `epochs` gives."""
    epochs: PositiveFloat = 1.0
    """Passes over the training split, where `max_steps` is null."""
    seed: NonNegativeInt = 42
    """Seed of initial weights, sample order and dropout."""
    precision: Precision = "auto"
    """Arithmetic of the forward pass. auto: bf16 where the hardware has it, fp16 on older GPUs, else fp32."""
    attention: Attention = "sdpa"
    """Attention kernel: torch's fused ones (sdpa), plain matrix products (eager), or flash-attn where installed."""
    activation_checkpointing: bool = False
    """Keep only each block's input and recompute the rest in the backward pass: less memory, a third slower."""
    compile: bool = False
    """Compile the blocks with `torch.compile`: up to a minute at first; needs a C++ compiler. Changes dropout masks."""


@dataclass(frozen=True)
class RollbackSettings:
    """When to return to the newest checkpoint because the loss or the gradient diverged."""

    max_nonfinite_steps: NonNegativeInt = 10
    """Consecutive steps with a non-finite loss or gradient, all skipped, after which the run rolls back; 0: never.
    Steps that only lower fp16's loss scale do not count."""
    spike_zscore: NonNegativeFloat = 0.0
    """Standard deviations above the mean of recent losses at which the run rolls back; 0: never."""
    spike_window: TwoOrMore = 100
    """Recent losses that give that mean and deviation; there is no spike before so many steps."""
    max_rollbacks: NonNegativeInt = 3
    """Rollbacks, each of which skips the samples seen since the checkpoint, before the run fails."""


@dataclass(frozen=True)
class ParallelSettings:
    """How ranks share the work."""

    backend: BackendName = "auto"
    """Replicated (single, ddp), DeepSpeed ZeRO stage 1 to 3 (zero1, zero2, zero3), or PyTorch FSDP2 (fsdp2). auto:
    what the launcher asks for, else single or ddp."""
    offload: bool = False
    """Keep the optimizer state, and under zero3 and fsdp2 the weights, in host memory."""
    replicas: PositiveInt = 1
    """Copies of the model under fsdp2 (HSDP): it is sharded over ranks / replicas. The number of nodes keeps the
    gathering of weights within each."""
    watchdog_timeout: NonNegativeInt = 1800
    """Seconds without a step or an evaluation batch after which a rank dumps its stacks and exits; 0: never."""


def check_attention(settings: TrainSettings, precision: Precision, document_mask: bool) -> None:
    """Check that the attention kernel of the settings is there, and computes in `precision`, with a mask if need be.

    Raises:
        UserError: it does not.
    """
    if settings.attention != "flash_attention_2":
        return
    if document_mask:
        raise UserError(
            "train.attention flash_attention_2 takes no mask, which data.document_mask needs; choose sdpa instead"
        )
    if precision == "fp32":
        raise UserError(
            "train.attention flash_attention_2 computes in 16 bits only; choose sdpa, or train.precision bf16 or fp16"
        )
    if find_spec("flash_attn") is None:
        raise UserError(
            "train.attention flash_attention_2 needs the package flash-attn, which is not installed "
            "(`pip install flash-attn --no-build-isolation`, with CUDA); sdpa uses torch's own flash kernel"
        )
