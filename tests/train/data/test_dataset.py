"""From shards to samples: each block once an epoch, mixtures by weight, the validation split of all sources."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from malmoi.configs.corpus import CorpusSettings, SourceSettings
from malmoi.configs.run import RunSettings
from malmoi.data_prep.pipeline.mixture import SourceShards, prepare_sources
from malmoi.data_prep.shards.token_stream import open_split
from malmoi.errors import UserError
from malmoi.train.data.dataset import data_changes, data_fingerprint, open_dataset, open_validation


@pytest.fixture(scope="module")
def sources(
    tiny_settings: RunSettings, korean_texts: list[str], tmp_path_factory: pytest.TempPathFactory
) -> tuple[SourceShards, ...]:
    """Two sources of different size, the smaller with three times the weight."""
    folder = tmp_path_factory.mktemp("sources")
    named = []
    for name, texts, weight in (("large", korean_texts[20:], 1.0), ("small", korean_texts[:20], 3.0)):
        file = folder / f"{name}.jsonl"
        file.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
        named.append(SourceSettings(name, (str(file),), weight))
    corpus = CorpusSettings(sources=tuple(named))
    assert tiny_settings.tokenizer.path is not None
    return prepare_sources(corpus, tiny_settings.data, Path(tiny_settings.tokenizer.path), folder / "shards")


def test_samples_are_the_blocks_of_the_stream_each_once_an_epoch(sources: tuple[SourceShards, ...]) -> None:
    dataset = open_dataset(sources[:1], 32, seed=1)
    stream = open_split(sources[0].folder, "train")
    tokens = np.empty(len(stream), dtype=np.int64)
    stream.read_into(0, tokens)
    order = dataset.sources[0].order
    expected = {
        tuple(tokens[start : start + 33]) for start in order.starts(np.arange(dataset.samples_per_epoch)).tolist()
    }
    count = dataset.samples_per_epoch
    batch = dataset.read(0, count)
    assert batch.doc_starts is None
    assert (
        batch.num_target_tokens
        == dataset.num_target_tokens(0, dataset.samples_per_epoch)
        == 32 * dataset.samples_per_epoch
    )
    rows = zip(batch.inputs.tolist(), batch.targets.tolist(), strict=True)
    assert {(*inputs, targets[-1]) for inputs, targets in rows} == expected
    assert (batch.inputs[:, 1:] == batch.targets[:, :-1]).all()


def test_a_mixture_keeps_its_weights_and_each_sources_own_order(sources: tuple[SourceShards, ...]) -> None:
    dataset = open_dataset(sources, 32, seed=1)
    own = [open_dataset((replace(source, weight=1.0),), 32, seed=1 + number) for number, source in enumerate(sources)]
    many = 400
    mixed = dataset.read(0, many).inputs
    chosen, _ = dataset.mixture.locate(np.arange(many))
    assert abs(int((chosen == 1).sum()) - 0.75 * many) <= 1
    for number in (0, 1):
        rows = mixed[chosen == number]
        assert (rows == own[number].read(0, len(rows)).inputs).all()


def test_the_validation_split_is_that_of_all_sources(sources: tuple[SourceShards, ...]) -> None:
    together = open_validation(sources)
    assert together is not None
    apart = [open_validation((source,)) for source in sources]
    assert len(together.stream) == sum(len(part.stream) for part in apart if part is not None)
    assert together.counts.bytes == sum(part.counts.bytes for part in apart if part is not None)


def test_other_weights_are_other_data(sources: tuple[SourceShards, ...]) -> None:
    other = (sources[0], replace(sources[1], weight=1.0))
    assert data_fingerprint(sources) != data_fingerprint(other)
    assert data_fingerprint(sources[:1]) == sources[0].folder.name


def test_a_source_shorter_than_a_block_is_named(sources: tuple[SourceShards, ...]) -> None:
    with pytest.raises(UserError, match=r"the small is shorter than one block: \d+ training tokens"):
        open_dataset(sources, 20_000, seed=1)


def test_files_that_changed_are_named(tiny_settings: RunSettings, korean_texts: list[str], tmp_path: Path) -> None:
    assert tiny_settings.tokenizer.path is not None
    files = [tmp_path / f"{name}.txt" for name in "abc"]
    for number, file in enumerate(files):
        file.write_text("\n".join(korean_texts[number * 5 : number * 5 + 5]), encoding="utf-8")

    def prepared(*sources: SourceSettings, **data: object) -> tuple[SourceShards, ...]:
        settings = replace(tiny_settings.data, **data)  # type: ignore[arg-type]  # any field
        corpus = CorpusSettings(sources=sources) if len(sources) > 1 else CorpusSettings(input=sources[0].input)
        return prepare_sources(corpus, settings, Path(str(tiny_settings.tokenizer.path)), tmp_path / "shards")

    one = SourceSettings("one", (str(tmp_path / "[ab].txt"),))
    before = prepared(one)
    assert data_changes(before, data_fingerprint(before)) == ""
    files[1].write_text("다른 글\n" * 20, encoding="utf-8")
    assert data_changes(prepared(one), data_fingerprint(before)) == f"corpus: {files[1]} changed"
    more = prepared(replace(one, input=(str(tmp_path / "[bc].txt"),)), shard_tokens=10_000)
    assert data_changes(more, data_fingerprint(before)) == (
        f"corpus: {files[1]} changed, {files[2]} added, {files[0]} removed and 1 more"
    )
    two = SourceSettings("two", (str(files[2]),))
    mixed = prepared(one, two)
    files[2].write_text("또 다른 글\n" * 20, encoding="utf-8")
    assert data_changes(prepared(one, two), data_fingerprint(mixed)) == f"two: {files[2]} changed"
    assert data_changes(mixed, "0" * 32) == ""
