"""Fine-tuning as a task of the loop: Radford et al., "Improving Language Understanding" (2018), section 3.2.

An example's loss is that of its label plus `language_model_weight` times the mean of its tokens' nats; an update's is
the mean over examples.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from accelerate import Accelerator
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from configs.finetune_settings import TaskKind, TaskSettings
from inference.label_scores import Estimate, Labelled, label_scores
from train.backend import Backend
from train.examples import ExampleBatch, Examples
from train.metrics import ValidationMetrics
from train.transfer import on_device


@dataclass(frozen=True)
class ValidationLook:
    """How the model does on the validation file."""

    loss: float
    """Of the task alone, a mean over examples."""
    estimates: tuple[Estimate, ...]

    @property
    def held_out_loss(self) -> float:
        return self.loss

    def line(self, step: int, tokens: int) -> ValidationMetrics:
        return ValidationMetrics(step, tokens, self.loss, self._scores())

    def figures(self) -> dict[str, float]:
        return {"held_out_loss": self.loss, **self._scores()}

    def text(self) -> str:
        shown = "  ".join(f"{name} {value:.4f}" for name, value in self._scores().items())
        return f"validation loss {self.loss:.4f}  {shown}"

    def _scores(self) -> dict[str, float]:
        return {estimate.name: estimate.value for estimate in self.estimates}


@dataclass(frozen=True)
class FineTuning:
    """Labelled examples in a seeded order, and the file that the model is judged by meanwhile."""

    settings: TaskSettings
    examples: Examples
    validation: Examples | None
    vocab_size: int
    seed: int

    @property
    def sample_tokens(self) -> int:
        return max(1, round(sum(map(len, self.examples.ids)) / len(self.examples)))

    def targets(self, first_sample: int, count: int) -> int:
        return count

    def read(self, first_sample: int, count: int) -> ExampleBatch:
        return self.examples.in_order(first_sample, count, self.seed)

    def nats(self, model: torch.nn.Module, samples: ExampleBatch, device: torch.device) -> Tensor:
        return joint_nats(model, samples, self.settings, self.vocab_size, device)

    def look(
        self,
        backend: Backend,
        accelerator: Accelerator,
        micro_batch: int,
        most_tokens: int | None,
        go_on: Callable[[], bool],
    ) -> ValidationLook | None:
        """The whole file, whatever `most_tokens`: a part would choose the model by chance."""
        if self.validation is None:
            return None
        outputs = outputs_of(backend, accelerator, self.validation, micro_batch, go_on)
        if outputs is None:
            return None
        loss = mean_loss(outputs, self.validation, self.settings.kind)
        # Intervals are for the end; between, the scores alone are asked for.
        return ValidationLook(loss, label_scores(labelled(outputs, self.validation, self.settings.kind), resamples=0))


def joint_nats(
    model: torch.nn.Module, batch: ExampleBatch, task: TaskSettings, vocab_size: int, device: torch.device
) -> Tensor:
    """The loss of this module's first lines, summed over the examples of `batch`, as an fp32 scalar."""
    ids, lengths, answers = (on_device(part, device) for part in (batch.ids, batch.lengths, batch.answers))
    with_text = task.language_model_weight != 0
    scores, logits = model(input_ids=ids, lengths=lengths, sequences=batch.sequences, with_text=with_text)
    nats = task_losses(scores.float(), answers, task.kind).sum()
    if not with_text:
        return nats
    texts = text_losses(logits, ids, lengths, vocab_size).view(-1, batch.sequences).mean(1)
    joint: Tensor = nats + task.language_model_weight * texts.sum()
    return joint


def task_losses(scores: Tensor, answers: Tensor, kind: TaskKind) -> Tensor:
    """Loss of each example: the answer's nats, or for similarity the squared error.

    Args:
        scores: `float[examples, outputs]`.
        answers: `[examples]`, `int64` or a float.
    """
    if kind == "similarity":
        return functional.mse_loss(scores.squeeze(1), answers.to(scores.dtype), reduction="none")
    return functional.cross_entropy(scores, answers, reduction="none")


def text_losses(logits: Tensor, ids: Tensor, lengths: Tensor, vocab_size: int) -> Tensor:
    """Mean nats of the tokens after the first of each sequence, padding left out, as `float32[sequences]`."""
    shifted = logits[:, :-1, :vocab_size].float()
    nats = functional.cross_entropy(shifted.flatten(0, 1), ids[:, 1:].flatten(), reduction="none").view(len(ids), -1)
    targets = lengths - 1
    counted = torch.arange(nats.shape[1], device=ids.device) < targets[:, None]
    return (nats * counted).sum(1) / targets


@torch.no_grad()
def outputs_of(
    backend: Backend, accelerator: Accelerator, examples: Examples, micro_batch: int, go_on: Callable[[], bool]
) -> NDArray[np.float64] | None:
    """The model's scores of all examples, `[examples, outputs]`, the same on every rank, which all must take part.

    Args:
        micro_batch: examples a rank computes at once.
        go_on: asked before each, on all ranks alike; false breaks off, and the answer is none.
    """
    ranks, rank, device = accelerator.num_processes, accelerator.process_index, accelerator.device
    outputs = torch.zeros((len(examples), examples.outputs), dtype=torch.float64, device=device)
    backend.model.eval()
    try:
        for first in range(0, len(examples), micro_batch * ranks):
            if not go_on():
                return None
            start = first + rank * micro_batch
            own = np.arange(start, min(start + micro_batch, len(examples)), dtype=np.int64)
            # A rank without examples still takes part where a forward pass gathers weights.
            batch = examples.batch(own if len(own) else np.zeros(1, dtype=np.int64))
            ids, lengths = torch.from_numpy(batch.ids).to(device), torch.from_numpy(batch.lengths).to(device)
            with backend.autocast():
                scores, _ = backend.model(input_ids=ids, lengths=lengths, sequences=batch.sequences, with_text=False)
            if len(own):
                outputs[start : start + len(own)] = scores.double()
    finally:
        backend.model.train()
    summed: Tensor = accelerator.reduce(outputs, "sum")
    return summed.cpu().numpy()


def mean_loss(outputs: NDArray[np.float64], examples: Examples, kind: TaskKind) -> float:
    """Mean of `task_losses`, in float64."""
    return float(task_losses(torch.from_numpy(outputs), torch.from_numpy(examples.answers), kind).mean())


def labelled(outputs: NDArray[np.float64], examples: Examples, kind: TaskKind) -> Labelled:
    """What the model answered beside what is right."""
    if kind == "similarity":
        return Labelled("number", outputs[:, 0], examples.answers.astype(np.float64))
    return Labelled("choice" if kind == "multiple_choice" else "class", outputs.argmax(1), examples.answers)


def most_frequent(learnt: Examples, examples: Examples, kind: TaskKind) -> Labelled:
    """Always the most frequent answer of `learnt`, the first of equal ones, or the mean for similarity, beside what is
    right in `examples`."""
    if kind == "similarity":
        always = np.full(len(examples), learnt.answers.mean(dtype=np.float64))
        return Labelled("number", always, examples.answers.astype(np.float64))
    answer = np.full(len(examples), np.bincount(learnt.answers).argmax())
    return Labelled("choice" if kind == "multiple_choice" else "class", answer, examples.answers)
