"""What `inspect` shows is what the shards hold."""

import io
import re
import tracemalloc
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

from malmoi.configs.corpus import CorpusSettings
from malmoi.configs.data import DataSettings
from malmoi.data_prep.pipeline.build import prepare_shards
from malmoi.data_prep.readers import chunks
from malmoi.data_prep.shards import inspect as inspection
from malmoi.data_prep.shards import lengths
from malmoi.data_prep.shards.inspect import decoded_document, decoder_of, inspect_shards, print_inspection
from malmoi.data_prep.tokenizer.encode import load_decoder
from malmoi.data_prep.tokenizer.train import load_tokenizer
from malmoi.errors import UserError

TEXTS = ["영화가 재미있다", "또 보고 싶은 영화", "짧다", "영화 " * 40 + "끝"]


def test_inspection(tokenizer_folder: Path, tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("\n".join(TEXTS), encoding="utf-8")
    corpus = CorpusSettings(input=(str(tmp_path / "a.txt"),))
    folder = prepare_shards(corpus, DataSettings(val_fraction=0), tokenizer_folder, tmp_path / "out")
    tokenizer = load_tokenizer(tokenizer_folder)
    ids = [[0, *tokenizer.encode(text, add_special_tokens=False).ids, 2] for text in TEXTS]
    found, decoder = inspect_shards(folder), load_decoder(tokenizer_folder)
    assert found.manifest.train.counts.documents == 4
    expected = Counter(token for document in ids for token in document)
    assert {token: int(n) for token, n in enumerate(found.token_counts) if n} == expected
    buckets = dict(zip(found.length_edges, found.length_counts, strict=False))
    assert sum(buckets.values()) == 4
    for document in ids:
        assert buckets[1 << (len(document).bit_length() - 1)] > 0
    for number, text in enumerate(TEXTS):
        assert decoded_document(found, number, decoder) == f"<s>{text}</s>"
    with pytest.raises(UserError, match="documents 0 to 3"):
        decoded_document(found, 4, decoder)
    shown = io.StringIO()
    print_inspection(found, decoder, Console(file=shown, width=120))
    lines = [" ".join(re.sub("[┃│]", " ", line).split()) for line in shown.getvalue().splitlines()]
    text_bytes = sum(len(text.encode()) for text in TEXTS)
    tokens = sum(expected.values())
    ratio = f"{text_bytes / tokens:.3f}"
    assert f"train 4 {tokens:,} {text_bytes:,} {sum(map(len, TEXTS)):,} {ratio}" in lines
    assert "val 0 0 0 0 -" in lines
    bins = Counter(1 << (len(document).bit_length() - 1) for document in ids)
    for low, count in bins.items():
        assert any(line.startswith(f"{low} to {2 * low - 1} {count}") for line in lines)
    ordered = sorted(expected.items(), key=lambda entry: (-entry[1], entry[0]))
    for title, some in (("most", ordered[:10]), ("least", ordered[-10:])):
        named = "  ".join(f"{tokenizer.id_to_token(token)!r} {count}" for token, count in some)
        assert f"{title} frequent: {named}" in shown.getvalue()
    assert f"{found.manifest.vocab_size - len(expected):,} of {found.manifest.vocab_size:,} tokens do not" in lines[-1]


def test_every_document_of_every_shard_and_split_is_shown(tokenizer_folder: Path, tmp_path: Path) -> None:
    texts = [f"글 {number}" for number in range(60)]
    (tmp_path / "a.txt").write_text("\n".join(texts), encoding="utf-8")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(chunks, "CHUNK_BYTES", 50)
        corpus, data = CorpusSettings(input=(str(tmp_path / "a.txt"),)), DataSettings(val_fraction=0.3, shard_tokens=20)
        folder = prepare_shards(corpus, data, tokenizer_folder, tmp_path / "out")
    found, decoder = inspect_shards(folder), load_decoder(tokenizer_folder)
    counts = (found.manifest.train.counts.documents, found.manifest.val.counts.documents)
    assert min(counts) > 5 and len(found.manifest.train.stems) > 2
    shown = [decoded_document(found, number, decoder) for number in range(counts[0])]
    shown += [decoded_document(found, number, decoder, "val") for number in range(counts[1])]
    assert sorted(shown) == sorted(f"<s>{text}</s>" for text in texts)
    with pytest.raises(UserError, match=f"the split val has documents 0 to {counts[1] - 1}"):
        decoded_document(found, counts[1], decoder, "val")


@pytest.mark.parametrize("wrong", [0xFFFF, 3000])
def test_an_id_beyond_the_vocabulary_is_named(tokenizer_folder: Path, tmp_path: Path, wrong: int) -> None:
    (tmp_path / "a.txt").write_text("\n".join(TEXTS), encoding="utf-8")
    corpus = CorpusSettings(input=(str(tmp_path / "a.txt"),))
    folder = prepare_shards(corpus, DataSettings(val_fraction=0), tokenizer_folder, tmp_path / "out")
    valid, decoder = inspect_shards(folder), load_decoder(tokenizer_folder)
    assert valid.manifest.vocab_size <= 3000
    tokens = np.fromfile(folder / "train-00000.bin", dtype="<u2")
    tokens[1] = wrong
    tokens.tofile(folder / "train-00000.bin")
    message = (
        rf"train-00000\.bin: holds the id {wrong}, and the vocabulary ends at {valid.manifest.vocab_size - 1}; run"
    )
    with pytest.raises(UserError, match=message):
        inspect_shards(folder)
    with pytest.raises(UserError, match=message):
        decoded_document(valid, 0, decoder)


def test_inspecting_needs_no_memory_for_each_document(
    tokenizer_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "a.txt").write_text("글\n" * 1_000_000, encoding="utf-8")
    corpus = CorpusSettings(input=(str(tmp_path / "a.txt"),))
    folder = prepare_shards(corpus, DataSettings(val_fraction=0), tokenizer_folder, tmp_path / "out")
    monkeypatch.setattr(lengths, "CHUNK", 10_000)
    monkeypatch.setattr(inspection, "CHUNK", 10_000)
    tracemalloc.start()
    try:
        found = inspect_shards(folder)
        most = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert sum(found.length_counts) == 1_000_000
    assert most < 1_000_000


def test_shards_of_any_tokenizer_are_decoded_and_by_no_other(tokenizer_folder: Path, tmp_path: Path) -> None:
    """BERT's vocabulary file, which only `transformers` loads."""
    (tmp_path / "bert").mkdir()
    (tmp_path / "bert" / "vocab.txt").write_text(
        "\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "영화", "##가"]) + "\n", encoding="utf-8"
    )
    (tmp_path / "bert" / "tokenizer_config.json").write_text(
        '{"tokenizer_class": "BertTokenizer", "strip_accents": false}'
    )
    (tmp_path / "a.txt").write_text("영화가\n", encoding="utf-8")
    corpus = CorpusSettings(input=(str(tmp_path / "a.txt"),))
    found = inspect_shards(prepare_shards(corpus, DataSettings(val_fraction=0), tmp_path / "bert", tmp_path / "out"))
    with pytest.raises(UserError, match="no folder `tokenizer` beside or above it"):
        decoder_of(found, None)
    with pytest.raises(UserError, match="made with another tokenizer than"):
        decoder_of(found, str(tokenizer_folder))
    assert decoded_document(found, 0, decoder_of(found, str(tmp_path / "bert"))) == "[CLS] 영화가 [SEP]"
    (tmp_path / "bert").rename(tmp_path / "out" / "tokenizer")
    assert decoder_of(found, None).token(4) == "영화"
