"""Whatever the tokenizer, the ids are those of `tokenizers`, or of `transformers` where that has its own code."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from malmoi.checksums import file_checksum
from malmoi.data_prep.tokenizer.encode import (
    PlainEncoder,
    check_tokenizer,
    load_decoder,
    load_encoder,
    tokenizer_checksum,
    vocabulary_size,
)
from malmoi.data_prep.tokenizer.fast_encode import FastEncoder
from malmoi.errors import UserError

TEXTS = ["영화가 재미있다", "Hello <s> </s>", "", "긴 글 " * 1000, "😀 똠방각하\n둘째 줄"]


def test_our_own_tokenizer_takes_the_fast_path_and_gives_the_reference_ids(tokenizer_folder: Path) -> None:
    encoder, size = load_encoder(tokenizer_folder)
    assert isinstance(encoder, FastEncoder) and encoder.slow_name == ""
    tokenizer = Tokenizer.from_file(str(tokenizer_folder / "tokenizer.json"))
    assert size == vocabulary_size(tokenizer_folder) == tokenizer.get_vocab_size()
    tokenizer.encode_special_tokens = True
    plain = PlainEncoder(tokenizer, tokenizer.token_to_id("<s>"), tokenizer.token_to_id("</s>"))
    for found, expected in zip(encoder.encode(TEXTS), plain.encode(TEXTS), strict=True):
        assert np.array_equal(found, expected)
    assert tokenizer_checksum(tokenizer_folder) == file_checksum(tokenizer_folder / "tokenizer.json")


@pytest.fixture
def gpt2(tmp_path: Path) -> Path:
    """A byte-level tokenizer as GPT-2's: one token begins and ends a text."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=300, special_tokens=["<|endoftext|>"], initial_alphabet=alphabet)
    tokenizer.train_from_iterator(TEXTS, trainer)
    folder = tmp_path / "gpt2"
    folder.mkdir()
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(
        json.dumps({"bos_token": "<|endoftext|>", "eos_token": {"content": "<|endoftext|>"}})
    )
    return folder


def test_a_foreign_tokenizer(gpt2: Path) -> None:
    encoder, size = load_encoder(gpt2)
    assert encoder.slow_name == "`tokenizers`"
    assert isinstance(encoder, PlainEncoder) and size == 300
    tokenizer = Tokenizer.from_file(str(gpt2 / "tokenizer.json"))
    tokenizer.encode_special_tokens = True
    texts = [*TEXTS, "<|endoftext|> is text"]
    ids, lengths = encoder.encode(texts)
    start = 0
    for text, length in zip(texts, lengths.tolist(), strict=True):
        document = ids[start : start + length].tolist()
        assert document == [*tokenizer.encode(text).ids, 0]
        assert tokenizer.decode(document) == text
        start += length
    assert start == len(ids)


def test_a_change_of_the_end_token_is_another_tokenizer(gpt2: Path) -> None:
    before = tokenizer_checksum(gpt2)
    (gpt2 / "tokenizer_config.json").write_text(json.dumps({"bos_token": "a", "eos_token": "b"}), encoding="utf-8")
    assert tokenizer_checksum(gpt2) != before


def test_a_tokenizer_that_only_transformers_loads(tmp_path: Path) -> None:
    """BERT's vocabulary file, which has no tokenizer.json."""
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "영화", "##가", "재미", "##있다"]
    (tmp_path / "vocab.txt").write_text("\n".join(words) + "\n", encoding="utf-8")
    (tmp_path / "tokenizer_config.json").write_text(
        json.dumps({"tokenizer_class": "BertTokenizer", "strip_accents": False})
    )
    encoder, size = load_encoder(tmp_path)
    ids, lengths = encoder.encode(["영화가 재미있다", "[SEP]"])
    assert size == len(words) and encoder.slow_name
    assert ids[: lengths[0]].tolist() == [2, 5, 6, 7, 8, 3]
    assert 3 not in ids[lengths[0] + 1 : -1].tolist()


@pytest.mark.parametrize("kind", ["CanineTokenizer", "ByT5Tokenizer"])
def test_a_tokenizer_in_python(tmp_path: Path, kind: str) -> None:
    """Characters between two ends, and bytes before one."""
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": kind}), encoding="utf-8")
    encoder, size = load_encoder(tmp_path)
    assert encoder.slow_name == "a tokenizer in Python"
    texts = ["가 </s>", "[SEP]"]
    ids, lengths = encoder.encode(texts)
    if kind == "CanineTokenizer":
        expected = [[0xE000, *map(ord, text), 0xE001] for text in texts]
    else:
        expected = [[*(byte + 3 for byte in text.encode()), 1] for text in texts]
    assert [ids[: lengths[0]].tolist(), ids[lengths[0] :].tolist()] == expected
    assert size > max(map(max, expected))
    shown = load_decoder(tmp_path).decode(expected[0])
    assert "가 </s>" in shown


@pytest.mark.parametrize("load", [load_encoder, check_tokenizer])
def test_what_is_no_tokenizer_is_named(tmp_path: Path, load: Callable[[Path], object]) -> None:
    with pytest.raises(UserError, match="no such folder; train a tokenizer"):
        load(tmp_path / "none")
    with pytest.raises(UserError, match="no tokenizer that AutoTokenizer loads"):
        load(tmp_path)
    (tmp_path / "tokenizer.json").write_text("{}", encoding="utf-8")
    with pytest.raises(UserError, match=r"tokenizer\.json: not a tokenizer that `tokenizers` reads"):
        load(tmp_path)
    Tokenizer(models.WordLevel({"a": 0}, "a")).save(str(tmp_path / "tokenizer.json"))
    with pytest.raises(UserError, match="the tokenizer has no token '</s>' to end a text"):
        load(tmp_path)
