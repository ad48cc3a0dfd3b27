"""What the loop asks of a task, and pre-training as one."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from accelerate import Accelerator
from torch import Tensor

from configs.schema import Attention
from inference.score import Score, readable_perplexity
from train.backend import Backend
from train.blocks import HeldOutPart, SampleReader
from train.documents import Batch, in_quarters
from train.held_out import held_out_score
from train.metrics import HeldOutMetrics, ValidationMetrics
from train.objective import batch_nats


class Look(Protocol):
    """What a look at held-out data saw."""

    @property
    def held_out_loss(self) -> float:
        """The lower the better; checkpoints are kept and training is ended by it."""
        ...

    def line(self, step: int, tokens: int) -> HeldOutMetrics | ValidationMetrics:
        """For metrics.jsonl."""
        ...

    def figures(self) -> dict[str, float]:
        """For trackers, by name."""
        ...

    def text(self) -> str:
        """For the terminal."""
        ...


class Task(Protocol):
    """What a run learns: how its samples are read, what they cost, and how the model is judged on held-out data.

    All of it is a function of sample numbers alone, the same on every rank.
    """

    @property
    def sample_tokens(self) -> int:
        """Tokens of a sample, for counts and speeds; a mean where samples differ."""
        ...

    def targets(self, first_sample: int, count: int) -> int:
        """What the summed nats of samples `first_sample` on are divided by."""
        ...

    def read(self, first_sample: int, count: int) -> Any:
        """Samples `first_sample` on, for `nats` of the same task."""
        ...

    def nats(self, model: torch.nn.Module, samples: Any, device: torch.device) -> Tensor:
        """The summed loss of `samples`, an fp32 scalar with a gradient."""
        ...

    def look(
        self,
        backend: Backend,
        accelerator: Accelerator,
        micro_batch: int,
        most_tokens: int | None,
        go_on: Callable[[], bool],
    ) -> Look | None:
        """Judge the model on held-out data, up to `most_tokens` of it; every rank must take part.

        Args:
            go_on: asked now and then, on all ranks alike, with the same answer on all; false breaks off.

        Returns:
            The same on every rank; none where there are no such data or it was broken off.
        """
        ...


@dataclass(frozen=True)
class HeldOutLook:
    """The score of the held-out part."""

    score: Score

    @property
    def held_out_loss(self) -> float:
        return self.score.loss

    def line(self, step: int, tokens: int) -> HeldOutMetrics:
        return HeldOutMetrics(
            step=step,
            tokens=tokens,
            held_out_loss=self.score.loss,
            perplexity=self.score.perplexity,
            bits_per_byte=self.score.bits_per_byte,
            held_out_tokens=self.score.tokens,
        )

    def figures(self) -> dict[str, float]:
        return {"held_out_loss": self.score.loss, "bits_per_byte": self.score.bits_per_byte}

    def text(self) -> str:
        return (
            f"held-out loss {self.score.loss:.4f}  perplexity {readable_perplexity(self.score.perplexity)}  "
            f"bits per byte {self.score.bits_per_byte:.4f}  ({self.score.tokens:,} tokens)"
        )


@dataclass(frozen=True)
class PreTraining:
    """The next token, over blocks of the corpus."""

    samples: SampleReader
    held_out: HeldOutPart | None
    vocab_size: int
    attention: Attention
    short_samples: int
    """As many, from the first, are read in quarters."""

    @property
    def sample_tokens(self) -> int:
        return self.samples.block_size

    def targets(self, first_sample: int, count: int) -> int:
        return self.samples.targets(first_sample, count)

    def read(self, first_sample: int, count: int) -> Batch:
        batch = self.samples.read(first_sample, count)
        return in_quarters(batch) if first_sample < self.short_samples else batch

    def nats(self, model: torch.nn.Module, samples: Batch, device: torch.device) -> Tensor:
        return batch_nats(model, samples, self.vocab_size, device, self.attention)

    def look(
        self,
        backend: Backend,
        accelerator: Accelerator,
        micro_batch: int,
        most_tokens: int | None,
        go_on: Callable[[], bool],
    ) -> HeldOutLook | None:
        if self.held_out is None:
            return None
        score = held_out_score(
            backend,
            accelerator,
            self.held_out,
            self.samples.block_size,
            self.vocab_size,
            micro_batch,
            most_tokens,
            go_on,
        )
        return None if score is None else HeldOutLook(score)
