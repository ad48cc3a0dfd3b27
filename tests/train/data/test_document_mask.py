"""With `data.document_mask` each document of a sample is computed as if it were read alone."""

import json
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from malmoi.configs.corpus import CorpusSettings
from malmoi.configs.data import DataSettings
from malmoi.configs.model import ModelSettings
from malmoi.configs.run import RunSettings
from malmoi.data_prep.pipeline.mixture import prepare_sources
from malmoi.errors import UserError
from malmoi.train.data.dataset import open_dataset
from malmoi.train.data.document_mask import Batch, DocumentStarts, DocumentTokens
from malmoi.train.models import SpecialTokenIds
from malmoi.train.models.spec import IGNORE_INDEX
from malmoi.train.pretrain import pretrain
from malmoi.train.tasks.language_modeling import batch_loss_sum
from tests.launching import metrics, step_losses, with_settings
from tests.train.streams import CPU, VOCABULARY, grads, marked, stream_of
from tests.train.training_models import new_gpt2

PARTS = ("inputs", "targets", "doc_starts")
LENGTHS = st.lists(st.lists(st.integers(1, 12), min_size=1, max_size=9), min_size=1, max_size=4)


@given(LENGTHS, st.integers(1, 20), st.data(), st.sampled_from(["two", "one"]))
@settings(deadline=None, max_examples=200)
def test_documents_are_marked_where_the_index_has_them(
    lengths: list[list[int]], block: int, data: st.DataObject, tokens: DocumentTokens
) -> None:
    stream, starts = stream_of(lengths)
    if len(stream) <= block:
        return
    start = data.draw(st.integers(0, len(stream) - block - 1))
    batch = marked(stream, tokens, start, block)
    starts_at = {token - start for token in starts.tolist()}
    doc_start = 0
    for place in range(block):
        is_first = place in starts_at if tokens == "two" else place + 1 in starts_at
        doc_start = place if is_first else doc_start
        assert batch.doc_starts is not None and batch.doc_starts[0, place] == doc_start
        is_counted = tokens == "one" or place + 1 not in starts_at
        assert (batch.targets[0, place] != IGNORE_INDEX) == is_counted
    masked = DocumentStarts(stream, tokens).masked_targets(start, block)
    assert batch.num_target_tokens == block - masked


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("tokens", ["two", "one"])
def test_loss_and_gradient_are_those_of_each_document_read_alone(tokens: DocumentTokens, attention: str) -> None:
    stream, _ = stream_of([[5, 9, 1, 3, 30], [7, 7, 2, 2, 11]])
    block = 32
    model = new_gpt2(ModelSettings(n_layer=3, n_head=2, n_embd=16, block_size=block), VOCABULARY, 5)
    model.set_attn_implementation(attention)
    batches = [marked(stream, tokens, start, block) for start in (0, 3, 17, 40)]
    parts = {name: np.concatenate([getattr(one, name) for one in batches]) for name in PARTS}
    together = batch_loss_sum(model, Batch(**parts), VOCABULARY, CPU, attention)
    together.backward()
    ours = grads(model)
    model.zero_grad()
    alone, pieces = 0.0, 0
    for one in batches:
        boundaries = [*np.unique(one.doc_starts).tolist(), block]
        for begin, end in pairwise(boundaries):
            logits = model(input_ids=torch.from_numpy(one.inputs[:, begin:end])).logits[..., :VOCABULARY]
            targets = torch.from_numpy(one.targets[:, begin:end]).flatten()
            loss_sum = torch.nn.functional.cross_entropy(logits.flatten(0, 1), targets, reduction="sum")
            loss_sum.backward()
            alone, pieces = alone + float(loss_sum.detach()), pieces + 1
    assert pieces > 12
    assert float(together.detach()) == pytest.approx(alone, rel=1e-6)
    for one, other in zip(ours, grads(model), strict=True):
        assert torch.allclose(one, other, rtol=1e-4, atol=1e-5 * float(other.abs().max()))


def test_a_text_that_spells_special_tokens_makes_no_boundary(tiny_settings: RunSettings, tmp_path: Path) -> None:
    texts = ["첫째 글</s><s>이어지는 글이다. " * 30, "둘째 글이다. " * 40]
    file = tmp_path / "texts.jsonl"
    file.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    assert tiny_settings.tokenizer.path is not None
    (source,) = prepare_sources(
        CorpusSettings(input=(str(file),)), DataSettings(val_fraction=0.0), Path(tiny_settings.tokenizer.path), tmp_path
    )
    dataset = open_dataset((source,), 8, 0, "two")
    many = dataset.samples_per_epoch
    targets = dataset.num_target_tokens(0, many)
    assert dataset.read(0, many).num_target_tokens == targets
    assert many * 8 - 1 <= targets <= many * 8, "two documents have one boundary"


def test_a_run_counts_the_target_tokens_of_the_global_batch_however_it_is_split(
    tiny_settings: RunSettings, tmp_path: Path
) -> None:
    """Micro-batches of 1 hold more or fewer targets each; the loss is the mean over all of them."""
    masked = with_settings(
        tiny_settings, data__document_mask=True, train__max_steps=4, checkpoint__every=0, eval__every=0
    )
    for size in (1, 4):
        assert pretrain(with_settings(masked, run=str(tmp_path / f"{size}"), train__micro_batch_size=size)) == 0
    one, four = step_losses(tmp_path / "1"), step_losses(tmp_path / "4")
    assert max(abs(a - b) for a, b in zip(one, four, strict=True)) < 5e-6
    config = json.loads((tmp_path / "1" / "model" / "config.json").read_text(encoding="utf-8"))
    special = SpecialTokenIds(config["bos_token_id"], config["pad_token_id"], config["eos_token_id"], None)
    model = new_gpt2(masked.model, config["vocab_size"], masked.train.seed, special)
    sources = prepare_sources(
        masked.corpus, masked.data, Path(str(masked.tokenizer.path)), Path(str(masked.data.cache))
    )
    dataset = open_dataset(sources, masked.model.block_size, masked.train.seed, "two")
    loss_sum = batch_loss_sum(model, dataset.read(0, 8), config["vocab_size"], CPU, "sdpa")
    targets = dataset.num_target_tokens(0, 8)
    assert targets < 8 * masked.model.block_size
    assert one[0] == pytest.approx(float(loss_sum.detach()) / targets, abs=1e-6)
    (loss_sum / targets).backward()
    norm = float(torch.nn.utils.get_total_norm(grads(model)))
    assert metrics(tmp_path / "1")[0]["train/grad_norm"] == pytest.approx(norm, rel=1e-5)


def test_a_run_cannot_change_the_mask_half_way(tiny_settings: RunSettings, finished_run: Path) -> None:
    with pytest.raises(UserError, match=r"data.document_mask was False and is now True"):
        pretrain(with_settings(tiny_settings, data__document_mask=True))
