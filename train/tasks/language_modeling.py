"""Language modeling: the next token, over blocks of the corpus."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from malmoi.configs.run import RunSettings
from malmoi.configs.train import Attention
from malmoi.data_prep.pipeline.mixture import SourceShards
from malmoi.errors import UserError
from malmoi.evaluation.perplexity import PerplexityResult, format_perplexity
from malmoi.train.backends import Backend
from malmoi.train.data.dataset import TokenDataset, ValidationSplit, open_validation
from malmoi.train.data.document_mask import QUARTERS, Batch, cut_in_quarters
from malmoi.train.distributed.async_copy import to_device
from malmoi.train.distributed.dist_env import DistEnv
from malmoi.train.metrics.records import ValMetrics
from malmoi.train.models.attention import document_mask
from malmoi.train.tasks.validation import validation_perplexity


@dataclass(frozen=True)
class PerplexityEvaluation:
    """The result of an evaluation on the validation split."""

    result: PerplexityResult

    @property
    def loss(self) -> float:
        return self.result.loss

    def record(self, step: int, tokens_seen: int) -> ValMetrics:
        result = self.result
        return ValMetrics(
            step, tokens_seen, result.loss, ppl=result.perplexity, bpb=result.bits_per_byte, tokens=result.tokens
        )

    def summary(self) -> str:
        result = self.result
        return (
            f"validation loss {result.loss:.4f}  perplexity {format_perplexity(result.perplexity)}  "
            f"bits per byte {result.bits_per_byte:.4f}  ({result.tokens:,} tokens)"
        )


@dataclass(frozen=True)
class LanguageModeling:
    """A `Task`: predict each next token of the dataset's samples."""

    dataset: TokenDataset
    validation: ValidationSplit | None
    vocab_size: int
    attention: Attention
    short_samples: int
    """As many samples, from the first, are read as four of a quarter of their length."""

    @property
    def sample_tokens(self) -> int:
        return self.dataset.block_size

    def num_target_tokens(self, first_sample: int, count: int) -> int:
        return self.dataset.num_target_tokens(first_sample, count)

    def read(self, first_sample: int, count: int) -> Batch:
        batch = self.dataset.read(first_sample, count)
        return cut_in_quarters(batch) if first_sample < self.short_samples else batch

    def largest(self, count: int) -> Batch:
        """Return samples of full length."""
        return self.dataset.read(self.short_samples, count)

    def loss_sum(self, model: nn.Module, samples: Batch, device: torch.device) -> Tensor:
        return batch_loss_sum(model, samples, self.vocab_size, device, self.attention)

    def evaluate(
        self,
        backend: Backend,
        env: DistEnv,
        micro_batch_size: int,
        max_tokens: int | None,
        keep_going: Callable[[], bool],
    ) -> PerplexityEvaluation | None:
        if self.validation is None:
            return None
        result = validation_perplexity(
            backend,
            env,
            self.validation,
            self.dataset.block_size,
            self.vocab_size,
            micro_batch_size,
            max_tokens,
            keep_going,
        )
        return None if result is None else PerplexityEvaluation(result)


def batch_loss_sum(
    model: nn.Module, batch: Batch, vocab_size: int, device: torch.device, attention: Attention
) -> Tensor:
    """Return the loss sum of `batch` in nats, an fp32 scalar.

    Args:
        model: of a `ModelSpec`, wrapped by a backend or not.
        attention: what the model computes attention with, which decides the form of a mask.
    """
    inputs, targets = to_device(batch.inputs, device), to_device(batch.targets, device)
    documents = {}
    if batch.doc_starts is not None:
        starts = to_device(batch.doc_starts, device)
        documents = {"positions": document_positions(starts), "attention_mask": document_mask(starts, attention)}
    loss_sum: Tensor = model(inputs, targets, vocab_size, **documents)
    return loss_sum


def document_positions(doc_starts: Tensor) -> Tensor:
    """Return each input's position in its own document, from `Batch.doc_starts`, as `int64` of the same shape."""
    return torch.arange(doc_starts.shape[1], device=doc_starts.device) - doc_starts


def build(
    settings: RunSettings, dataset: TokenDataset, sources: Sequence[SourceShards], vocab_size: int, max_steps: int
) -> LanguageModeling:
    """Return the task of a run.

    Raises:
        UserError: the sequence length warmup cannot quarter the block size, or the validation split is damaged.
    """
    warmup, block_size = settings.data.seq_len_warmup, settings.model.block_size
    if warmup and block_size % QUARTERS:
        raise UserError(
            f"data.seq_len_warmup: model.block_size {block_size} is no multiple of {QUARTERS}; choose one, or 0"
        )
    short_samples = round(warmup * max_steps) * settings.train.global_batch_size
    return LanguageModeling(dataset, open_validation(sources), vocab_size, settings.train.attention, short_samples)
