import json
import signal
import subprocess
import sys
import unicodedata
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer
from transformers import AutoTokenizer

from malmoi.configs.corpus import CorpusSettings, TokenizerSettings
from malmoi.data_prep.pipeline.build import build_tokenizer
from malmoi.data_prep.pipeline.build_once import build_once
from malmoi.data_prep.tokenizer.train import (
    SPECIAL_TOKENS,
    TOKENIZER_FILE,
    load_tokenizer,
    sample_by_hash,
    save_tokenizer,
    train_tokenizer,
)
from malmoi.errors import UserError

SETTINGS = TokenizerSettings(vocab_size=2000)
HARD_PIECES = ["<s>", "</s>", "<pad>", "<unk>", "<0x41>", "▁", "\u2126", "  ", "\n\n", "\r", "\x00", "😀", "똠", "ㅋㅋ"]
TEXT = st.lists(st.text(st.characters(exclude_categories=["Cs"])) | st.sampled_from(HARD_PIECES)).map("".join)


@pytest.fixture(scope="module")
def tokenizer(korean_texts: list[str]) -> Tokenizer:
    return train_tokenizer(iter(korean_texts), SETTINGS)


@pytest.fixture(scope="module")
def folder(tokenizer: Tokenizer, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tokenizer")
    save_tokenizer(tokenizer, folder)
    return folder


@given(TEXT)
@example("  앞에 칸이 있고\n줄이 바뀌는 글 ")
@example("▁▁ 밑줄 ▁ \u2126")
@settings(max_examples=300, deadline=None)
def test_decoding_gives_back_any_nfc_text(tokenizer: Tokenizer, text: str) -> None:
    text = unicodedata.normalize("NFC", text)
    ids = tokenizer.encode(text, add_special_tokens=False).ids
    assert tokenizer.decode(ids, skip_special_tokens=False) == text


@given(TEXT)
@settings(max_examples=300, deadline=None)
def test_no_text_becomes_a_special_token(tokenizer: Tokenizer, text: str) -> None:
    ids = tokenizer.encode(text, add_special_tokens=False).ids
    assert not set(ids) & set(range(len(SPECIAL_TOKENS)))


def test_decomposed_hangul_gets_the_ids_of_composed_hangul(tokenizer: Tokenizer) -> None:
    text = "영화가 정말 재미있었다"
    assert tokenizer.encode(unicodedata.normalize("NFD", text)).ids == tokenizer.encode(text).ids


def test_every_syllable_of_the_corpus_has_a_token(tokenizer: Tokenizer, korean_texts: list[str]) -> None:
    syllables = {character for text in korean_texts for character in text if "가" <= character <= "힣"}
    assert len(syllables) > 500
    assert all(tokenizer.token_to_id(syllable) is not None for syllable in syllables)


def test_special_tokens_come_first_and_the_size_is_kept(tokenizer: Tokenizer) -> None:
    assert [tokenizer.token_to_id(token) for token in SPECIAL_TOKENS] == [0, 1, 2, 3]
    assert tokenizer.get_vocab_size() == SETTINGS.vocab_size


def test_the_same_text_gives_the_same_file(korean_texts: list[str], folder: Path, tmp_path: Path) -> None:
    save_tokenizer(train_tokenizer(iter(korean_texts), SETTINGS), tmp_path)
    for name in ("tokenizer.json", "vocab.json", "merges.txt", "tokenizer_config.json"):
        assert (tmp_path / name).read_bytes() == (folder / name).read_bytes()


@given(TEXT)
@settings(max_examples=100, deadline=None)
def test_auto_tokenizer_gives_the_same_ids(folder: Path, text: str) -> None:
    loaded, auto = load_tokenizer(folder), _auto_tokenizer(folder)
    assert auto(text).input_ids == loaded.encode(text).ids
    assert auto(text, add_special_tokens=False).input_ids == loaded.encode(text, add_special_tokens=False).ids


_AUTO: dict[Path, AutoTokenizer] = {}


def _auto_tokenizer(folder: Path) -> AutoTokenizer:
    if folder not in _AUTO:
        _AUTO[folder] = AutoTokenizer.from_pretrained(folder)
    return _AUTO[folder]


def test_vocabulary_and_merges_are_those_of_the_tokenizer_file(tokenizer: Tokenizer, folder: Path) -> None:
    assert json.loads((folder / "vocab.json").read_text(encoding="utf-8")) == tokenizer.get_vocab(
        with_added_tokens=True
    )
    merges = [
        line.split(" ") for line in (folder / "merges.txt").read_text(encoding="utf-8").splitlines() if line[0] != "#"
    ]
    assert merges == json.loads(tokenizer.to_str())["model"]["merges"]


KILLED = """
import os, resource, signal, sys
from pathlib import Path
from malmoi.data_prep.pipeline.build_once import build_once
from malmoi.data_prep.tokenizer.train import TOKENIZER_FILE, load_tokenizer, save_tokenizer

source, final, file, most_bytes = sys.argv[1:]
tokenizer = load_tokenizer(Path(source))

def kill_at(event, arguments):
    if file and event == "open" and file in str(arguments[0]):
        os.kill(os.getpid(), signal.SIGKILL)

def build(folder, heartbeat):
    sys.addaudithook(kill_at)
    if int(most_bytes):
        signal.signal(signal.SIGXFSZ, signal.SIG_DFL)
        resource.setrlimit(resource.RLIMIT_FSIZE, (int(most_bytes), resource.RLIM_INFINITY))
    save_tokenizer(tokenizer, folder)

build_once(Path(final), TOKENIZER_FILE, build)
"""


@pytest.mark.parametrize("killed_in", ["tokenizer_config.json", "tokenizer.json"])
def test_a_build_that_was_killed_leaves_no_half_tokenizer(
    tokenizer: Tokenizer, folder: Path, tmp_path: Path, killed_in: str
) -> None:
    """Killed as it opens the one file, or half way through the other, which is the largest."""
    final, half = tmp_path / "tokenizer", (folder / TOKENIZER_FILE).stat().st_size - 1
    place = ["tokenizer_config.json", "0"] if killed_in == "tokenizer_config.json" else ["", str(half)]
    done = subprocess.run([sys.executable, "-c", KILLED, str(folder), str(final), *place])
    assert -done.returncode in (signal.SIGKILL, signal.SIGXFSZ)
    build_once(final, TOKENIZER_FILE, lambda temporary, _: save_tokenizer(tokenizer, temporary))
    for file in folder.iterdir():
        assert (final / file.name).read_bytes() == file.read_bytes()
    assert [entry.name for entry in tmp_path.iterdir()] == ["tokenizer"]


def test_a_vocabulary_smaller_than_the_alphabet_is_refused(korean_texts: list[str]) -> None:
    with pytest.raises(UserError, match=r"vocab_size 300 is smaller than the alphabet.*need \d+; set it to"):
        train_tokenizer(iter(korean_texts), TokenizerSettings(vocab_size=300))


def test_a_corpus_without_text_is_refused() -> None:
    with pytest.raises(UserError, match="the corpus: no text to train a tokenizer on"):
        train_tokenizer(iter([]), SETTINGS)


def test_files_without_text_are_named(tmp_path: Path) -> None:
    for number in range(5):
        (tmp_path / f"{number}.txt").touch()
    corpus = CorpusSettings(input=(str(tmp_path),))
    with pytest.raises(UserError, match=r"/0\.txt, \S+/1\.txt, \S+/2\.txt, 2 more: no text to train a tokenizer on"):
        build_tokenizer(corpus, SETTINGS, tmp_path / "tokenizer", False)


def test_a_folder_without_a_tokenizer_is_refused_with_its_path(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=rf"{tmp_path}/tokenizer.json: no tokenizer there"):
        load_tokenizer(tmp_path)
    (tmp_path / "tokenizer.json").write_text("{}", encoding="utf-8")
    with pytest.raises(UserError, match="not a tokenizer"):
        load_tokenizer(tmp_path)


@given(st.lists(st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=20)), st.integers(1, 100))
@example(["가" * 20, "나" * 20, "다" * 13, "라" * 5], 100)
@settings(deadline=None)
def test_the_sample_is_bounded_and_does_not_depend_on_the_order(documents: list[str], most_bytes: int) -> None:
    sample = sample_by_hash(documents, most_bytes)
    assert sum(len(text.encode()) for text in sample) <= most_bytes
    assert sorted(sample) == sorted(sample_by_hash(documents[::-1], most_bytes))
    if sum(len(text.encode()) for text in documents) <= most_bytes:
        assert sample == documents
