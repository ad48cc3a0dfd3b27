"""With `data.seq_len_warmup` the first samples are read as four of a quarter of their length each."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from malmoi.configs.parser import settings_as_yaml
from malmoi.configs.run import RunSettings
from malmoi.data_prep.pipeline.mixture import prepare_sources
from malmoi.errors import UserError
from malmoi.train.data.dataset import open_dataset
from malmoi.train.data.document_mask import DocumentTokens, cut_in_quarters
from malmoi.train.models import SpecialTokenIds
from malmoi.train.pretrain import pretrain
from malmoi.train.tasks.language_modeling import LanguageModeling, batch_loss_sum
from tests.launching import as_flags, metrics, step_losses, two_ranks, with_settings
from tests.train.streams import CPU, marked, stream_of
from tests.train.training_models import new_gpt2

LENGTHS = st.lists(st.lists(st.integers(1, 12), min_size=1, max_size=9), min_size=1, max_size=4)


@given(LENGTHS, st.integers(1, 8), st.data(), st.sampled_from(["two", "one"]))
@settings(deadline=None, max_examples=200)
def test_quarters_are_the_samples_of_that_length_at_their_places(
    lengths: list[list[int]], quarter: int, data: st.DataObject, tokens: DocumentTokens
) -> None:
    stream, _ = stream_of(lengths)
    if len(stream) <= 4 * quarter:
        return
    start = data.draw(st.integers(0, len(stream) - 4 * quarter - 1))
    cut = cut_in_quarters(marked(stream, tokens, start, 4 * quarter))
    alone = [marked(stream, tokens, start + number * quarter, quarter) for number in range(4)]
    for name in ("inputs", "targets", "doc_starts"):
        assert np.array_equal(getattr(cut, name), np.concatenate([getattr(one, name) for one in alone])), name


def test_a_run_reads_quarters_for_its_fraction_of_the_steps_and_then_full_samples(
    tiny_settings: RunSettings, tmp_path: Path
) -> None:
    wanted = with_settings(
        tiny_settings,
        run=str(tmp_path / "run"),
        data__seq_len_warmup=0.5,
        train__max_steps=4,
        checkpoint__every=0,
        eval__every=0,
        schedule__warmup_steps=0,
        optim__lr=0.0,
    )
    batch_size = wanted.train.global_batch_size
    assert pretrain(wanted) == 0
    config = json.loads((tmp_path / "run" / "model" / "config.json").read_text(encoding="utf-8"))
    special = SpecialTokenIds(config["bos_token_id"], config["pad_token_id"], config["eos_token_id"], None)
    model = new_gpt2(wanted.model, config["vocab_size"], wanted.train.seed, special)
    tokenizer, cache = Path(str(wanted.tokenizer.path)), Path(str(wanted.data.cache))
    sources = prepare_sources(wanted.corpus, wanted.data, tokenizer, cache)
    dataset = open_dataset(sources, wanted.model.block_size, wanted.train.seed)
    task = LanguageModeling(dataset, None, config["vocab_size"], "sdpa", short_samples=2 * batch_size)
    for step, loss in enumerate(step_losses(tmp_path / "run")):
        plain = dataset.read(step * batch_size, batch_size)
        expected = cut_in_quarters(plain) if step < 2 else plain
        read = task.read(step * batch_size, batch_size)
        assert np.array_equal(read.inputs, expected.inputs) and np.array_equal(read.targets, expected.targets)
        loss_sum = float(batch_loss_sum(model, expected, config["vocab_size"], CPU, "sdpa").detach())
        assert loss == pytest.approx(loss_sum / (batch_size * wanted.model.block_size), abs=2e-6)


def test_a_fraction_or_a_block_that_does_not_fit_is_refused(tiny_settings: RunSettings, tmp_path: Path) -> None:
    elsewhere = with_settings(tiny_settings, run=str(tmp_path / "run"))
    with pytest.raises(UserError, match=r"data.seq_len_warmup 1.5: give a number from 0 to 1"):
        pretrain(with_settings(elsewhere, data__seq_len_warmup=1.5))
    odd = with_settings(elsewhere, model__block_size=30, data__seq_len_warmup=0.5)
    with pytest.raises(UserError, match=r"model.block_size 30 is no multiple of 4"):
        pretrain(odd)


def test_two_ranks_and_a_resumed_run_read_what_one_process_reads(tiny_settings: RunSettings, tmp_path: Path) -> None:
    """Six steps of which four are of short samples; on two ranks, and again from the checkpoint after the third."""
    wanted = with_settings(
        tiny_settings,
        run=str(tmp_path / "run"),
        data__seq_len_warmup=0.7,
        train__max_steps=6,
        checkpoint__every=1,
        checkpoint__keep_last=6,
        eval__every=0,
    )
    assert pretrain(wanted) == 0
    undisturbed = step_losses(tmp_path / "run")

    config = tmp_path / "settings.yaml"
    config.write_text(settings_as_yaml(wanted), encoding="utf-8")
    done = two_ranks(*as_flags(config, run=tmp_path / "ranks"))
    assert done.returncode == 0, done.stderr
    apart = zip(step_losses(tmp_path / "ranks"), undisturbed, strict=True)
    assert max(abs(one - other) for one, other in apart) < 5e-6

    copied = tmp_path / "copied"
    shutil.copytree(tmp_path / "run", copied, ignore=shutil.ignore_patterns("result.json", "model", "step-00000[456]"))
    assert pretrain(with_settings(wanted, run=str(copied))) == 0
    assert step_losses(copied) == undisturbed
    assert next(line["text"] for line in metrics(copied) if "event" in line).startswith("resuming from step 3 ")
