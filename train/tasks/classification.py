"""Fine-tuning on labeled examples (Radford et al., "Improving Language Understanding by Generative Pre-Training",
2018).

An example's loss is that of its label plus `lm_loss_weight` times the mean loss of its tokens; a step's is the mean
over examples.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from malmoi.configs.finetune import TaskKind, TaskSettings
from malmoi.evaluation.label_metrics import Estimate, Predictions, label_metrics
from malmoi.train.backends import Backend
from malmoi.train.data.labeled import ExampleBatch, Examples
from malmoi.train.distributed.async_copy import to_device
from malmoi.train.distributed.dist_env import DistEnv
from malmoi.train.metrics.records import TaskValMetrics

ANSWERS: dict[TaskKind, Literal["class", "choice", "number"]] = {
    "classification": "class",
    "entailment": "class",
    "similarity": "number",
    "multiple_choice": "choice",
}
"""What the answers of each kind of task are, for `Predictions`."""


@dataclass(frozen=True)
class TaskEvaluation:
    """The result of an evaluation on the validation file."""

    loss: float
    """Of the task alone, a mean over examples."""
    estimates: tuple[Estimate, ...]

    def record(self, step: int, tokens_seen: int) -> TaskValMetrics:
        return TaskValMetrics(step, tokens_seen, self.loss, self._scores())

    def summary(self) -> str:
        shown = "  ".join(f"{name} {value:.4f}" for name, value in self._scores().items())
        return f"validation loss {self.loss:.4f}  {shown}"

    def _scores(self) -> dict[str, float]:
        return {estimate.name: estimate.value for estimate in self.estimates}


@dataclass(frozen=True)
class LabeledTask:
    """Labeled examples in a seeded order, and the file that the model is evaluated on meanwhile."""

    settings: TaskSettings
    examples: Examples
    validation: Examples | None
    vocab_size: int
    seed: int

    @property
    def sample_tokens(self) -> int:
        return max(1, round(sum(map(len, self.examples.ids)) / len(self.examples)))

    def num_target_tokens(self, first_sample: int, count: int) -> int:
        """Return `count`: the loss is a mean over examples."""
        return count

    def read(self, first_sample: int, count: int) -> ExampleBatch:
        return self.examples.in_order(first_sample, count, self.seed)

    def largest(self, count: int) -> ExampleBatch:
        return self.examples.batch(longest_examples(self.examples, count))

    def loss_sum(self, model: torch.nn.Module, samples: ExampleBatch, device: torch.device) -> Tensor:
        return joint_loss_sum(model, samples, self.settings, self.vocab_size, device)

    def evaluate(
        self,
        backend: Backend,
        env: DistEnv,
        micro_batch_size: int,
        max_tokens: int | None,
        keep_going: Callable[[], bool],
    ) -> TaskEvaluation | None:
        """Evaluate on the whole file, whatever `max_tokens`: a part would select the model by chance."""
        if self.validation is None:
            return None
        outputs = outputs_of(backend, env, self.validation, micro_batch_size, keep_going)
        if outputs is None:
            return None
        loss = mean_loss(outputs, self.validation, self.settings.kind)
        # Intervals are for the end; between, the scores alone are asked for.
        return TaskEvaluation(
            loss, label_metrics(predictions(outputs, self.validation, self.settings.kind), resamples=0)
        )


def joint_loss_sum(
    model: torch.nn.Module, batch: ExampleBatch, task: TaskSettings, vocab_size: int, device: torch.device
) -> Tensor:
    """Return the loss of this module's first lines, summed over the examples of `batch`, as an fp32 scalar."""
    ids, lengths, answers = (to_device(part, device) for part in (batch.ids, batch.lengths, batch.answers))
    with_lm_logits = task.lm_loss_weight != 0
    scores, logits = model(input_ids=ids, lengths=lengths, sequences=batch.sequences, with_lm_logits=with_lm_logits)
    loss_sum = task_losses(scores.float(), answers, task.kind).sum()
    if not with_lm_logits:
        return loss_sum
    texts = text_losses(logits, ids, lengths, vocab_size).view(-1, batch.sequences).mean(1)
    joint: Tensor = loss_sum + task.lm_loss_weight * texts.sum()
    return joint


def longest_examples(examples: Examples, count: int) -> NDArray[np.int64]:
    """Return the numbers of the `count` examples with the longest sequences, to which a batch is padded; where there
    are fewer, they repeat."""
    lengths = np.array([len(ids) for ids in examples.ids], dtype=np.int64).reshape(len(examples), examples.sequences)
    return np.resize(np.argsort(-lengths.max(1), kind="stable"), count)


def task_losses(scores: Tensor, answers: Tensor, kind: TaskKind) -> Tensor:
    """Return the loss of each example: cross-entropy, or for similarity the squared error.

    Args:
        scores: `float[examples, outputs]`.
        answers: `[examples]`, `int64` or a float.
    """
    if kind == "similarity":
        return functional.mse_loss(scores.squeeze(1), answers.to(scores.dtype), reduction="none")
    return functional.cross_entropy(scores, answers, reduction="none")


def text_losses(logits: Tensor, ids: Tensor, lengths: Tensor, vocab_size: int) -> Tensor:
    """Return the mean loss, in nats, of the tokens after the first of each sequence, `float32[sequences]`."""
    shifted = logits[:, :-1, :vocab_size].float()
    losses = functional.cross_entropy(shifted.flatten(0, 1), ids[:, 1:].flatten(), reduction="none").view(len(ids), -1)
    targets = lengths - 1
    counted = torch.arange(losses.shape[1], device=ids.device) < targets[:, None]
    return (losses * counted).sum(1) / targets


@torch.no_grad()
def outputs_of(
    backend: Backend, env: DistEnv, examples: Examples, micro_batch_size: int, keep_going: Callable[[], bool]
) -> NDArray[np.float64] | None:
    """Return the model's scores of all examples, `[examples, outputs]`, the same on every rank; all must call this.

    Args:
        micro_batch_size: examples a rank computes at once.
        keep_going: called before each, on all ranks alike; false stops, and None is returned.
    """
    ranks, rank, device = env.dims.dp_size, env.dims.dp_rank, env.device
    outputs = torch.zeros((len(examples), examples.outputs), dtype=torch.float64, device=device)
    backend.model.eval()
    try:
        for first in range(0, len(examples), micro_batch_size * ranks):
            if not keep_going():
                return None
            start = first + rank * micro_batch_size
            own = np.arange(start, min(start + micro_batch_size, len(examples)), dtype=np.int64)
            # A rank without examples still takes part where a forward pass gathers weights.
            batch = examples.batch(own if len(own) else np.zeros(1, dtype=np.int64))
            ids, lengths = torch.from_numpy(batch.ids).to(device), torch.from_numpy(batch.lengths).to(device)
            with backend.autocast():
                scores, _ = backend.model(
                    input_ids=ids, lengths=lengths, sequences=batch.sequences, with_lm_logits=False
                )
            if len(own):
                outputs[start : start + len(own)] = scores.double()
    finally:
        backend.model.train()
    summed: Tensor = env.accelerator.reduce(outputs, "sum")
    return summed.cpu().numpy()


def mean_loss(outputs: NDArray[np.float64], examples: Examples, kind: TaskKind) -> float:
    """Return the mean of `task_losses`, in float64."""
    return float(task_losses(torch.from_numpy(outputs), torch.from_numpy(examples.answers), kind).mean())


def predictions(outputs: NDArray[np.float64], examples: Examples, kind: TaskKind) -> Predictions:
    """Return the model's answers beside the labels."""
    if kind == "similarity":
        return Predictions("number", outputs[:, 0], examples.answers.astype(np.float64))
    return Predictions(ANSWERS[kind], outputs.argmax(1), examples.answers)


def most_frequent(train: Examples, examples: Examples, kind: TaskKind) -> Predictions:
    """Return always the most frequent answer of `train`, the first of equal ones, or the mean for similarity, beside
    the labels of `examples`."""
    if kind == "similarity":
        always = np.full(len(examples), train.answers.mean(dtype=np.float64))
        return Predictions("number", always, examples.answers.astype(np.float64))
    answer = np.full(len(examples), np.bincount(train.answers).argmax())
    return Predictions(ANSWERS[kind], answer, examples.answers)
