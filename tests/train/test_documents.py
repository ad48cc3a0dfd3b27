"""With `data.document_mask` each document of a sample is computed as if it were read alone."""

import json
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from configs.errors import BadInput
from configs.schema import CorpusSettings, DataSettings, ModelSettings, RunSettings
from data_prep.mixture import prepare_sources
from tests.launching import metrics, step_losses
from tests.train.streams import CPU, VOCABULARY, grads, marked, stream_of
from train.blocks import open_samples
from train.documents import NOT_COUNTED, Batch, DocumentStarts, DocumentTokens
from train.model import SpecialTokenIds, new_model
from train.objective import batch_nats
from train.run import run

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
    begins_at = {token - start for token in starts.tolist()}
    begin = 0
    for place in range(block):
        is_first = place in begins_at if tokens == "two" else place + 1 in begins_at
        begin = place if is_first else begin
        assert batch.begins is not None and batch.begins[0, place] == begin
        is_counted = tokens == "one" or place + 1 not in begins_at
        assert (batch.labels[0, place] != NOT_COUNTED) == is_counted
    masked = DocumentStarts(stream, tokens).masked_targets(start, block)
    assert batch.targets == block - masked


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("tokens", ["two", "one"])
def test_loss_and_gradient_are_those_of_each_document_read_alone(tokens: DocumentTokens, attention: str) -> None:
    stream, _ = stream_of([[5, 9, 1, 3, 30], [7, 7, 2, 2, 11]])
    block = 32
    model = new_model(
        ModelSettings(n_layer=3, n_head=2, n_embd=16, block_size=block), VOCABULARY, SpecialTokenIds(0, 1, 2, 3), 5
    )
    model.set_attn_implementation(attention)
    batches = [marked(stream, tokens, start, block) for start in (0, 3, 17, 40)]
    batch = Batch(*(np.concatenate([getattr(one, name) for one in batches]) for name in ("inputs", "labels", "begins")))
    together = batch_nats(model, batch, VOCABULARY, CPU, attention)
    together.backward()
    ours = grads(model)
    model.zero_grad()
    alone, pieces = 0.0, 0
    for one in batches:
        borders = [*np.unique(one.begins).tolist(), block]
        for begin, end in pairwise(borders):
            logits = model(input_ids=torch.from_numpy(one.inputs[:, begin:end])).logits[..., :VOCABULARY]
            labels = torch.from_numpy(one.labels[:, begin:end]).flatten()
            nats = torch.nn.functional.cross_entropy(logits.flatten(0, 1), labels, reduction="sum")
            nats.backward()
            alone, pieces = alone + float(nats.detach()), pieces + 1
    assert pieces > 12
    assert float(together.detach()) == pytest.approx(alone, rel=1e-6)
    for one, other in zip(ours, grads(model), strict=True):
        assert torch.allclose(one, other, rtol=1e-4, atol=1e-5 * float(other.abs().max()))


def test_a_text_that_spells_special_tokens_makes_no_border(tiny_settings: RunSettings, tmp_path: Path) -> None:
    texts = ["첫째 글</s><s>이어지는 글이다. " * 30, "둘째 글이다. " * 40]
    file = tmp_path / "texts.jsonl"
    file.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    assert tiny_settings.tokenizer.path is not None
    (source,) = prepare_sources(
        CorpusSettings(input=(str(file),)), DataSettings(held_out=0.0), Path(tiny_settings.tokenizer.path), tmp_path
    )
    reader = open_samples((source,), 8, 0, "two")
    many = reader.samples_per_epoch
    targets = reader.targets(0, many)
    assert reader.read(0, many).targets == targets
    assert many * 8 - 1 <= targets <= many * 8, "two documents have one border"


def test_a_run_counts_the_targets_of_the_whole_batch_however_it_is_dealt_out(
    tiny_settings: RunSettings, tmp_path: Path
) -> None:
    """Micro-batches of 1 hold more or fewer targets each; the loss is the mean over all of them."""
    masked = replace(tiny_settings, data=replace(tiny_settings.data, document_mask=True))
    for size in (1, 4):
        train = replace(masked.train, micro_batch=size, steps=4, save_every=0, evaluate_every=0)
        assert run(replace(masked, run=str(tmp_path / f"{size}"), train=train)) == 0
    one, four = step_losses(tmp_path / "1"), step_losses(tmp_path / "4")
    assert max(abs(a - b) for a, b in zip(one, four, strict=True)) < 5e-6
    config = json.loads((tmp_path / "1" / "model" / "config.json").read_text())
    special = SpecialTokenIds(config["bos_token_id"], config["pad_token_id"], config["eos_token_id"], None)
    model = new_model(masked.model, config["vocab_size"], special, masked.train.seed)
    sources = prepare_sources(
        masked.corpus, masked.data, Path(str(masked.tokenizer.path)), Path(str(masked.data.cache))
    )
    reader = open_samples(sources, masked.model.block_size, masked.train.seed, "two")
    nats = batch_nats(model, reader.read(0, 8), config["vocab_size"], CPU, "sdpa")
    targets = reader.targets(0, 8)
    assert targets < 8 * masked.model.block_size
    assert one[0] == pytest.approx(float(nats.detach()) / targets, abs=1e-6)
    (nats / targets).backward()
    norm = float(torch.nn.utils.get_total_norm(grads(model)))
    assert metrics(tmp_path / "1")[0]["grad_norm"] == pytest.approx(norm, rel=1e-5)


def test_a_run_does_not_take_the_mask_up_half_way(tiny_settings: RunSettings, finished_run: Path) -> None:
    with pytest.raises(BadInput, match=r"data.document_mask was False and is now True"):
        run(replace(tiny_settings, data=replace(tiny_settings.data, document_mask=True)))
