"""Language modeling: the loss of a batch of samples, and what an evaluation reports."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from malmoi.configs.model import ModelSettings
from malmoi.evaluation.perplexity import LossSum, perplexity_result
from malmoi.train.metrics.records import as_logged
from malmoi.train.models.cross_entropy import plain_loss_sum
from malmoi.train.tasks.language_modeling import PerplexityEvaluation, batch_loss_sum, document_positions
from tests.train.streams import CPU, VOCABULARY, marked, stream_of
from tests.train.training_models import new_gpt2

BLOCK = 32
DOCUMENTS = marked(stream_of([[5, 9, 1, 3, 30], [7, 7, 2, 2, 11]])[0], "two", 3, BLOCK)


def test_the_loss_of_a_batch_is_the_plain_one_of_its_targets() -> None:
    batch = replace(DOCUMENTS, doc_starts=None)
    model = new_gpt2(ModelSettings(n_layer=1, n_head=1, n_embd=16, block_size=BLOCK), VOCABULARY, 1)
    assert batch.num_target_tokens < BLOCK, "the target after a document's end has no loss"
    inputs, targets = torch.from_numpy(batch.inputs), torch.from_numpy(batch.targets)
    plain = plain_loss_sum(model(inputs, use_cache=False).logits, targets, VOCABULARY)
    ours = batch_loss_sum(model, batch, VOCABULARY, CPU, "sdpa")
    assert float(ours.detach()) == pytest.approx(float(plain.detach()), rel=1e-6)


def test_positions_begin_anew_at_each_document() -> None:
    assert DOCUMENTS.doc_starts is not None
    positions = document_positions(torch.from_numpy(DOCUMENTS.doc_starts)).numpy()
    begins = np.flatnonzero(positions[0] == 0).tolist()
    assert begins == sorted({0, *DOCUMENTS.doc_starts[0].tolist()})
    assert all(step == 1 for step in np.diff(positions[0]).tolist() if step > 0)


def test_an_evaluation_reports_loss_perplexity_and_bits_per_byte() -> None:
    """Of 1,000 tokens of a text of 1,001 with 4,004 bytes, at 2 nats each."""
    evaluation = PerplexityEvaluation(perplexity_result(LossSum(2000.0, 1000), 1001, 4004))
    bits_per_byte = 2 / np.log(2) * 1001 / 4004
    assert evaluation.loss == 2.0
    assert as_logged(evaluation.record(7, 512)) == {
        "step": 7,
        "tokens_seen": 512,
        "val/loss": 2.0,
        "val/ppl": pytest.approx(np.exp(2.0)),
        "val/bpb": pytest.approx(bits_per_byte, rel=2e-3),
        "val/tokens": 1000,
    }
    assert evaluation.summary().startswith("validation loss 2.0000  perplexity 7.4  bits per byte 0.7")
