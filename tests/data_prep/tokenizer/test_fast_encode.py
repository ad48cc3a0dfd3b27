"""Promises of `malmoi.data_prep.tokenizer.fast_encode`: the ids of `tokenizers`, whatever the text, and quickly."""

import gzip
import json
import multiprocessing
import pickle
import random
import subprocess
import sys
import threading
import time
import unicodedata
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer

from malmoi.configs.corpus import TokenizerSettings
from malmoi.data_prep.tokenizer import fast_encode
from malmoi.data_prep.tokenizer import numba_compile as machine_code
from malmoi.data_prep.tokenizer.fast_encode import FastEncoder
from malmoi.data_prep.tokenizer.train import (
    BOS,
    BYTE_PIECES,
    EOS,
    SPACE,
    SPECIAL_TOKENS,
    train_tokenizer,
    untrained_tokenizer,
    with_bos_and_literal_specials,
)
from tests.time_limits import seconds

ROOT = Path(__file__).parents[3]
DEMO = sorted((ROOT / "data_prep/demo_text").glob("*.jsonl.gz"))
SHARED = ROOT.parent / "shared"
SAMPLE_BYTES = 1_000_000

AWKWARD = [
    *(" ", "  ", "   ", "\n", "\n\n", " \n", "\n ", "\r\n", "\t", "\0", "\u00a0", "\u3000", "\u200b"),
    *("▁", "▁▁", " ▁", "▁ ", "\u2126", "Ω", "</s>", "<s>", "<pad>", "<unk>", "<0x41>", "<0xEA>", "\ufeff"),
    *("가", "힣", "대한민국", "안녕하세요", "ㅋ", "ㅋㅋㅋㅋ", "ㅠㅠ", "똠", "\u1100", "\u1161", "\u11a8"),
    *(unicodedata.normalize("NFD", "한국어"), "\u11a7", "e\u0301", "\u0301", "\u0345", "\u0334", "\u212b"),
    *("q\u0307\u0323", "😀", "👩‍👩‍👧", "🩷", "🇰🇷", "𝒜", "𠀀", "\U0002f800", "\U0010ffff", "\ue000"),
    *("１２", "½", "³", "Ⅷ", "७", "3", "1234", "a", "Abc", "漢字", "ﬁ", "①", "…", "!", "!\0", "!\0\0"),
    *("--", "========", "가나다라마바사", "가나다라마바사아"),
]  # fmt: skip
texts = st.lists(st.one_of(st.sampled_from(AWKWARD), st.text(max_size=8)), max_size=24).map("".join)


def texts_of(file: Path, most_bytes: int) -> Iterator[str]:
    with gzip.open(file, "rt", encoding="utf-8") as lines:
        for line in lines:
            text: str = json.loads(line)["text"]
            most_bytes -= len(text.encode())
            if most_bytes < 0:
                return
            yield text


def encoder_of(tokenizer: Tokenizer, **options: int) -> FastEncoder:
    encoder = FastEncoder.for_tokenizer(tokenizer, **options)
    assert encoder is not None
    return encoder


def assert_same(encoder: FastEncoder, tokenizer: Tokenizer, documents: Sequence[str]) -> None:
    bos, eos = tokenizer.token_to_id(BOS), tokenizer.token_to_id(EOS)
    ids, lengths = encoder.encode(documents)
    assert ids.dtype == np.int32 and lengths.dtype == np.int64 and lengths.sum() == len(ids)
    encodings = tokenizer.encode_batch_fast(list(documents), add_special_tokens=False)
    end = 0
    for text, length, encoding in zip(documents, lengths.tolist(), encodings, strict=True):
        start, end = end, end + length
        assert ids[start:end].tolist() == [bos, *encoding.ids, eos], ascii(text[:200])


def description_of(merges: Sequence[tuple[str, str]], alphabet: str = SPACE) -> dict[str, Any]:
    """JSON of a tokenizer with the given merges in order of rank, and only the tokens that they need."""
    tokens = [*SPECIAL_TOKENS, *BYTE_PIECES, *alphabet]
    tokens += [token for left, right in merges for token in (left, right, left + right)]
    plain = untrained_tokenizer().to_str()
    description: dict[str, Any] = json.loads(plain)
    description["model"]["vocab"] = {token: number for number, token in enumerate(dict.fromkeys(tokens))}
    description["model"]["merges"] = [list(merge) for merge in dict.fromkeys(merges)]
    return description


def tokenizer_of(description: dict[str, Any]) -> Tokenizer:
    return with_bos_and_literal_specials(Tokenizer.from_str(json.dumps(description)))


@pytest.fixture(scope="module")
def demo_texts() -> list[str]:
    return [text for file in DEMO for text in texts_of(file, SAMPLE_BYTES // 2)]


@pytest.fixture(scope="module")
def tokenizer(demo_texts: list[str]) -> Tokenizer:
    return train_tokenizer(demo_texts, TokenizerSettings(vocab_size=6000))


@pytest.fixture(scope="module")
def encoder(tokenizer: Tokenizer) -> FastEncoder:
    return encoder_of(tokenizer)


@settings(max_examples=300, deadline=None)
@given(documents=st.lists(texts, max_size=6))
def test_any_text_gets_the_ids_of_tokenizers(tokenizer: Tokenizer, encoder: FastEncoder, documents: list[str]) -> None:
    assert_same(encoder, tokenizer, documents)


def test_one_document_alone_gets_the_ids_of_encode(tokenizer: Tokenizer, encoder: FastEncoder) -> None:
    for text in AWKWARD:
        ids, _ = encoder.encode([text])
        assert ids.tolist()[1:-1] == tokenizer.encode(text, add_special_tokens=False).ids, ascii(text)


def code_points_asked(full: bool) -> Iterator[str]:
    for code in range(0x110000):
        listed = code < 0x3400 or 0xA600 <= code < 0xAC00 or 0xF900 <= code < 0x11A00 or code % 251 == 0
        if (full or listed) and not 0xD800 <= code < 0xE000:
            yield chr(code)


@pytest.mark.parametrize("full", [False, pytest.param(True, marks=pytest.mark.soak)])
def test_every_code_point_is_taken_for_what_tokenizers_take_it_for(
    tokenizer: Tokenizer, encoder: FastEncoder, full: bool
) -> None:
    # One document a code point: another that NFC changes would have the whole document normalized.
    assert_same(encoder, tokenizer, [f"가{c}e{c}{c}1 {c}" for c in code_points_asked(full)])
    assert_same(encoder, tokenizer, [f"각{c}\u1100{c}\u0345{c}\u0334" for c in code_points_asked(full)])
    assert_same(encoder, tokenizer, [f"a{c}\u0334{c}" for c in code_points_asked(full)])


def test_what_nfc_joins_is_joined(tokenizer: Tokenizer, encoder: FastEncoder) -> None:
    composed = map(chr, [*range(0xC0, 0x3400), *range(0xAC00, 0xD7A4)])
    joined = [unicodedata.normalize("NFD", c) for c in composed]
    assert_same(encoder, tokenizer, [f"x{text}y" for text in joined])
    assert_same(encoder, tokenizer, ["".join(joined), "한 " * 50 + "".join(reversed(joined))])


def test_a_python_with_older_unicode_tables_than_tokenizers_changes_no_id(
    tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fast_encode, "unicodedata", unicodedata.ucd_3_2_0)
    composed = map(chr, [*range(0xC0, 0x3400), *range(0x11000, 0x11A00)])
    joined = [unicodedata.normalize("NFD", c) for c in composed]
    assert_same(encoder_of(tokenizer), tokenizer, [f"x{text}y" for text in joined])


def test_the_demo_corpus_gets_the_ids_of_tokenizers(
    tokenizer: Tokenizer, encoder: FastEncoder, demo_texts: list[str]
) -> None:
    assert_same(encoder, tokenizer, demo_texts)
    assert_same(encoder, tokenizer, demo_texts)  # again, now from the memo
    assert_same(encoder, tokenizer, [unicodedata.normalize("NFD", text) for text in demo_texts[:50]])


@pytest.mark.parametrize("most_bytes", [500_000, pytest.param(10**12, marks=pytest.mark.soak)])
def test_published_corpora_get_the_ids_of_tokenizers(
    tokenizer: Tokenizer, encoder: FastEncoder, most_bytes: int
) -> None:
    files = sorted((SHARED / "corpora").glob("*.jsonl.gz"))
    if not files:
        pytest.skip(f"no corpora in {SHARED}/corpora")
    for file in files:
        batch: list[str] = []
        for text in texts_of(file, most_bytes):
            batch.append(text)
            if len(batch) == 1000:
                assert_same(encoder, tokenizer, batch)
                batch = []
        assert_same(encoder, tokenizer, batch)


def test_hostile_files_get_the_ids_of_tokenizers(tokenizer: Tokenizer, encoder: FastEncoder) -> None:
    files = [file for file in sorted((Path(__file__).parents[1] / "nasty").glob("*")) if file.is_file()]
    assert len(files) > 10
    whole = [file.read_bytes().decode(errors="replace") for file in files]
    assert_same(encoder, tokenizer, whole)
    assert_same(encoder, tokenizer, [line for text in whole for line in text.splitlines(keepends=True)])


def test_a_special_token_spelled_out_is_text(tokenizer: Tokenizer, encoder: FastEncoder) -> None:
    special = {tokenizer.token_to_id(token) for token in SPECIAL_TOKENS}
    ids, _ = encoder.encode(["</s> <s><pad>가</s>", "<unk>"])
    assert sum(token in special for token in ids.tolist()) == 4


def test_a_special_token_that_a_user_added_is_text_too(tokenizer: Tokenizer) -> None:
    added = Tokenizer.from_str(tokenizer.to_str())
    added.add_special_tokens(["영화", "<|user|>"])
    added.encode_special_tokens = True
    assert_same(encoder_of(added), added, ["이 영화 <|user|> 영화는", "영화<|user|>"])


def test_no_documents_and_empty_documents_are_encoded(tokenizer: Tokenizer, encoder: FastEncoder) -> None:
    ids, lengths = encoder.encode([])
    assert len(ids) == len(lengths) == 0
    assert_same(encoder, tokenizer, ["", "가", "", ""])


def test_half_a_surrogate_pair_is_refused_not_guessed(encoder: FastEncoder) -> None:
    with pytest.raises(UnicodeEncodeError):
        encoder.encode(["가", "\ud800"])


@settings(max_examples=150, deadline=None)
@given(
    pairs=st.lists(st.tuples(st.integers(0, 99), st.integers(0, 99)), max_size=30),
    words=st.lists(st.text("abㅋ🩷 ", max_size=40), max_size=5),
    heap_above=st.sampled_from([0, 3, 500]),
)
def test_merges_are_made_lowest_rank_first_and_leftmost_among_equals(
    pairs: list[tuple[int, int]], words: list[str], heap_above: int
) -> None:
    tokens = ["a", "b", "ㅋ", SPACE, "<0xF0>", "<0x9F>", "<0xA9>"]
    merges = []
    for left, right in pairs:
        merge = tokens[left % len(tokens)], tokens[right % len(tokens)]
        if len(merge[0] + merge[1]) < 30:
            merges.append(merge)
            tokens.append(merge[0] + merge[1])
    made = tokenizer_of(description_of(merges, "abㅋ" + SPACE))
    assert_same(encoder_of(made, memo_words=16, heap_above=heap_above), made, words)


@pytest.fixture(scope="module")
def merging_everything() -> Tokenizer:
    """A tokenizer that would join any two of these characters, if only they were in the same word."""
    characters = "12a가!?\n▁\u2126"
    return tokenizer_of(description_of([(a, b) for a in characters for b in characters], characters))


@settings(max_examples=300, deadline=None)
@given(documents=st.lists(st.text("12a가!? \n▁", max_size=30), max_size=10))
def test_no_merge_reaches_over_the_boundary_of_a_word(merging_everything: Tokenizer, documents: list[str]) -> None:
    assert_same(encoder_of(merging_everything, memo_words=16), merging_everything, documents)


@pytest.mark.parametrize("heap_above", [0, 96, 10_000])
def test_long_words_get_the_ids_of_tokenizers(tokenizer: Tokenizer, heap_above: int) -> None:
    draw = random.Random(0)
    syllables = "".join(draw.choices("가나다라마바사아하는을에고지ㅋㅠ😀\u0301", k=3000))
    long = [piece * 1999 for piece in ("ㅋ", "가", "=", " ", "\n", "영화", "😀", "é")] + [syllables]
    edges = ["영화는정말재미있었습니다"[:n] + "!" * m for n in range(12) for m in range(12)]
    assert_same(encoder_of(tokenizer, heap_above=heap_above), tokenizer, long + edges)


def test_a_word_of_any_length_takes_time_in_proportion(encoder: FastEncoder) -> None:
    def seconds(syllable: str, count: int) -> float:
        text = syllable * count
        taken = []
        for _ in range(3):
            start = time.process_time()
            encoder.encode([text])
            taken.append(time.process_time() - start)
        return min(taken)

    for syllable in ("ㅋ", "가", "힣"):
        assert seconds(syllable, 1 << 17) < 60 * seconds(syllable, 1 << 13)  # 16 and a little; squared: 256


def test_words_that_share_a_place_in_the_memo_keep_their_own_ids(tokenizer: Tokenizer, demo_texts: list[str]) -> None:
    crowded = encoder_of(tokenizer, memo_words=2)  # every word falls on the same two entries
    assert_same(crowded, tokenizer, demo_texts[:100])
    assert_same(crowded, tokenizer, AWKWARD * 3)
    assert_same(crowded, tokenizer, ["가나가나 나가 나 가 나", "! !\0 !\0\0 ! !\0", "\0\0 \0\0\0\0 \0"])


def test_a_full_memo_takes_no_more_memory_and_gives_the_same_ids(tokenizer: Tokenizer, demo_texts: list[str]) -> None:
    small = encoder_of(tokenizer, memo_words=1 << 8)
    for _ in range(2):
        assert_same(small, tokenizer, demo_texts)
        (memo,) = small.idle_memos
        assert memo[:, 2].all()
        assert memo.nbytes == 256 * 32


def test_a_vocabulary_without_characters_spells_everything_in_bytes() -> None:
    for alphabet in ("", SPACE, "\u2126", " "):
        bare = tokenizer_of(description_of([], alphabet))
        assert_same(encoder_of(bare), bare, [*AWKWARD, "".join(AWKWARD)])


def test_ids_as_high_as_a_memo_can_hold_are_kept() -> None:
    description = description_of([("나", "다")], "가나다라마바" + SPACE)
    vocab = description["model"]["vocab"]
    description["model"]["vocab"] = {token: (1 << 24) - 1 - number for token, number in vocab.items()}
    high = tokenizer_of(description)
    words = ["가나다라마바"[first:last] for first in range(6) for last in range(7)]
    assert_same(encoder_of(high), high, words * 2)


def test_several_tokenizers_in_one_process_do_not_mix(
    tokenizer: Tokenizer, encoder: FastEncoder, demo_texts: list[str]
) -> None:
    other = train_tokenizer(demo_texts[:200], TokenizerSettings(vocab_size=2200))
    other_encoder = encoder_of(other)
    for first in range(0, 60, 20):
        assert_same(encoder, tokenizer, demo_texts[first : first + 20])
        assert_same(other_encoder, other, demo_texts[first : first + 20])


def test_threads_share_an_encoder(tokenizer: Tokenizer, demo_texts: list[str]) -> None:
    shared = encoder_of(tokenizer, memo_words=1 << 10)
    wanted = encoder_of(tokenizer).encode(demo_texts)[0]
    same: list[bool] = []

    def work() -> None:
        same.extend(np.array_equal(shared.encode(demo_texts)[0], wanted) for _ in range(3))

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert same == [True] * 12


def test_an_encoder_works_on_both_sides_of_a_fork(encoder: FastEncoder, demo_texts: list[str]) -> None:
    wanted = encoder.encode(demo_texts)[0]
    busy = threading.Thread(target=lambda: [encoder.encode(demo_texts) for _ in range(10)])
    busy.start()
    try:
        with multiprocessing.get_context("fork").Pool(1) as pool:
            ids, _ = pool.apply_async(encoder.encode, (demo_texts,)).get(timeout=seconds(30))
    finally:
        busy.join()
    assert np.array_equal(ids, wanted)
    assert np.array_equal(encoder.encode(demo_texts)[0], wanted)


def test_an_encoder_sent_to_another_process_goes_without_its_memo_and_gives_the_same_ids(
    tokenizer: Tokenizer, encoder: FastEncoder, demo_texts: list[str]
) -> None:
    encoder.encode(demo_texts)
    sent = pickle.dumps(encoder)
    assert len(sent) < encoder.memo_words * 32
    received = pickle.loads(sent)
    for _ in range(2):
        assert_same(received, tokenizer, [*demo_texts, *AWKWARD])


def set_at(*path: str, to: Any) -> Callable[[dict[str, Any]], None]:
    def change(description: dict[str, Any]) -> None:
        for key in path[:-1]:
            description = description[key]
        description[path[-1]] = to

    return change


ADDED = {"id": 300, "single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
TRUNCATION = {"direction": "Right", "max_length": 5, "strategy": "LongestFirst", "stride": 0}


@pytest.mark.parametrize(
    "change",
    [
        set_at("normalizer", to=None),
        set_at("normalizer", to={"type": "NFKC"}),
        lambda description: description["normalizer"]["normalizers"].pop(0),
        set_at("pre_tokenizer", to=None),
        set_at("pre_tokenizer", "pattern", to={"Regex": r"\s+"}),
        set_at("pre_tokenizer", "behavior", to="Removed"),
        set_at("pre_tokenizer", "invert", to=True),
        set_at("truncation", to=TRUNCATION),
        set_at("added_tokens", to=[{**ADDED, "content": "영화", "special": False}]),
        set_at("post_processor", to={"type": "BertProcessing", "sep": ["</s>", 2], "cls": ["<s>", 0]}),
        set_at("model", "dropout", to=0.5),
        set_at("model", "byte_fallback", to=False),
        set_at("model", "ignore_merges", to=True),
        set_at("model", "end_of_word_suffix", to="</w>"),
        set_at("model", "vocab", "<0xEA>!", to=None),
        set_at("model", "vocab", "far", to=1 << 24),
        set_at("model", to={"type": "WordLevel", "vocab": {BOS: 0, "<unk>": 1}, "unk_token": "<unk>"}),
        set_at("model", to={"type": "Unigram", "vocab": [["<unk>", 0.0]], "unk_id": 0}),
    ],
)
def test_a_tokenizer_of_another_pipeline_is_left_to_tokenizers(
    change: Callable[[dict[str, Any]], Any],
) -> None:
    description = description_of([])
    assert FastEncoder.for_tokenizer(tokenizer_of(description)) is not None
    change(description)
    if description["model"].get("vocab") and "<0xEA>!" in description["model"]["vocab"]:
        del description["model"]["vocab"]["<0xEA>!"], description["model"]["vocab"]["<0xEA>"]
    other = Tokenizer.from_str(json.dumps(description))
    other.encode_special_tokens = True
    assert FastEncoder.for_tokenizer(other) is None


def test_a_tokenizer_that_reads_special_tokens_in_text_is_left_to_tokenizers() -> None:
    reading = tokenizer_of(description_of([]))
    reading.encode_special_tokens = False
    assert FastEncoder.for_tokenizer(reading) is None


def test_a_memo_whose_size_is_no_power_of_two_is_refused(tokenizer: Tokenizer) -> None:
    for size in (0, 1, 3, 1000):
        with pytest.raises(ValueError, match="power of two"):
            FastEncoder.for_tokenizer(tokenizer, memo_words=size)


def twice(number: int) -> int:
    return 2 * number


def test_without_a_folder_to_keep_machine_code_in_it_compiles_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("numba.core.caching.CompileResultCacheImpl._locator_classes", [])
    assert machine_code.entry(twice)(21) == 42


def test_a_disk_without_room_for_machine_code_stops_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    saves = []

    def no_room(*_: object) -> None:
        saves.append(1)
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("numba.core.caching.IndexDataCacheFile.save", no_room)
    assert machine_code.entry(twice)(21) == 42
    assert saves


def test_numba_is_loaded_only_by_who_encodes() -> None:
    seen = "import sys, malmoi.data_prep.tokenizer.train; print('numba' in sys.modules)"
    run = subprocess.run([sys.executable, "-c", seen], capture_output=True, text=True, cwd=ROOT, check=True)
    assert run.stdout.strip() == "False"
