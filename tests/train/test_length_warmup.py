"""With `data.length_warmup` the first samples are read as four of a quarter of their length each."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from configs.command_line import settings_as_yaml
from configs.errors import BadInput
from configs.schema import RunSettings
from data_prep.mixture import prepare_sources
from tests.launching import as_flags, metrics, step_losses, two_ranks
from tests.train.streams import CPU, marked, stream_of
from train.blocks import open_samples
from train.documents import DocumentTokens, in_quarters
from train.model import SpecialTokenIds, new_model
from train.objective import batch_nats
from train.run import run
from train.task import PreTraining

LENGTHS = st.lists(st.lists(st.integers(1, 12), min_size=1, max_size=9), min_size=1, max_size=4)


@given(LENGTHS, st.integers(1, 8), st.data(), st.sampled_from(["two", "one"]))
@settings(deadline=None, max_examples=200)
def test_quarters_are_the_samples_of_that_length_that_lie_there(
    lengths: list[list[int]], quarter: int, data: st.DataObject, tokens: DocumentTokens
) -> None:
    stream, _ = stream_of(lengths)
    if len(stream) <= 4 * quarter:
        return
    start = data.draw(st.integers(0, len(stream) - 4 * quarter - 1))
    cut = in_quarters(marked(stream, tokens, start, 4 * quarter))
    alone = [marked(stream, tokens, start + number * quarter, quarter) for number in range(4)]
    for name in ("inputs", "labels", "begins"):
        assert np.array_equal(getattr(cut, name), np.concatenate([getattr(one, name) for one in alone])), name


def warmed_up(tiny_settings: RunSettings, share: float) -> RunSettings:
    return replace(tiny_settings, data=replace(tiny_settings.data, length_warmup=share))


def test_a_run_reads_quarters_for_its_share_of_the_steps_and_then_whole_samples(
    tiny_settings: RunSettings, tmp_path: Path
) -> None:
    train = replace(tiny_settings.train, steps=4, save_every=0, evaluate_every=0, warmup_steps=0, learning_rate=0.0)
    wanted = replace(warmed_up(tiny_settings, 0.5), run=str(tmp_path / "run"), train=train)
    assert run(wanted) == 0
    config = json.loads((tmp_path / "run" / "model" / "config.json").read_text())
    special = SpecialTokenIds(config["bos_token_id"], config["pad_token_id"], config["eos_token_id"], None)
    model = new_model(wanted.model, config["vocab_size"], special, train.seed)
    tokenizer, cache = Path(str(wanted.tokenizer.path)), Path(str(wanted.data.cache))
    sources = prepare_sources(wanted.corpus, wanted.data, tokenizer, cache)
    reader = open_samples(sources, wanted.model.block_size, train.seed)
    task = PreTraining(reader, None, config["vocab_size"], "sdpa", short_samples=2 * train.global_batch)
    for step, loss in enumerate(step_losses(tmp_path / "run")):
        plain = reader.read(step * train.global_batch, train.global_batch)
        expected = in_quarters(plain) if step < 2 else plain
        read = task.read(step * train.global_batch, train.global_batch)
        assert np.array_equal(read.inputs, expected.inputs) and np.array_equal(read.labels, expected.labels)
        nats = float(batch_nats(model, expected, config["vocab_size"], CPU, "sdpa").detach())
        assert loss == pytest.approx(nats / (train.global_batch * wanted.model.block_size), abs=2e-6)


def test_a_share_or_a_block_that_does_not_fit_is_refused(tiny_settings: RunSettings, tmp_path: Path) -> None:
    elsewhere = replace(tiny_settings, run=str(tmp_path / "run"))
    with pytest.raises(BadInput, match=r"data.length_warmup 1.5: choose a share from 0 to 1"):
        run(warmed_up(elsewhere, 1.5))
    odd = replace(elsewhere, model=replace(elsewhere.model, block_size=30))
    with pytest.raises(BadInput, match=r"model.block_size 30 is no multiple of 4"):
        run(warmed_up(odd, 0.5))


def test_two_ranks_and_a_run_that_goes_on_read_what_one_process_reads(
    tiny_settings: RunSettings, tmp_path: Path
) -> None:
    """Six updates of which four are of short samples; on two ranks, and again from the checkpoint after the third."""
    train = replace(tiny_settings.train, steps=6, save_every=1, keep_last=6, evaluate_every=0)
    wanted = replace(warmed_up(tiny_settings, 0.7), run=str(tmp_path / "run"), train=train)
    assert run(wanted) == 0
    whole = step_losses(tmp_path / "run")

    config = tmp_path / "settings.yaml"
    config.write_text(settings_as_yaml(wanted))
    done = two_ranks(*as_flags(config, run=tmp_path / "ranks"))
    assert done.returncode == 0, done.stderr
    apart = zip(step_losses(tmp_path / "ranks"), whole, strict=True)
    assert max(abs(one - other) for one, other in apart) < 5e-6

    copied = tmp_path / "copied"
    shutil.copytree(tmp_path / "run", copied, ignore=shutil.ignore_patterns("result.json", "model", "step-00000[456]"))
    assert run(replace(wanted, run=str(copied))) == 0
    assert step_losses(copied) == whole
    assert next(line["text"] for line in metrics(copied) if "event" in line).startswith("going on from step 3 ")
