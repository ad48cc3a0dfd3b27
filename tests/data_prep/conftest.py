"""What the tests of this folder share: a small tokenizer, and the hostile files."""

import json
from pathlib import Path

import pytest

from malmoi.configs.corpus import CorpusSettings, TokenizerSettings
from malmoi.data_prep.pipeline.build import build_tokenizer

DEMO = "package:data_prep/demo_text"


@pytest.fixture(scope="session")
def tokenizer_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tokenizer of 2,000 ids, trained on the demo's reviews."""
    folder = tmp_path_factory.mktemp("tokenizer") / "tokenizer"
    corpus = CorpusSettings(input=(f"{DEMO}/film_reviews.jsonl.gz",))
    return build_tokenizer(corpus, TokenizerSettings(vocab_size=3000, sample_bytes=2_000_000), folder, False)


@pytest.fixture(scope="session")
def nasty() -> Path:
    """The folder of hostile files."""
    return Path(__file__).parent / "nasty"


@pytest.fixture(scope="session")
def review_lines() -> list[str]:
    """A few thousand reviews, one line each, for corpora made on the spot."""
    from malmoi.data_prep.pipeline.corpus import read_documents
    from malmoi.data_prep.readers.sources import corpus_files

    corpus = CorpusSettings(input=(f"{DEMO}/film_reviews.jsonl.gz",))
    lines: list[str] = []
    for document in read_documents(corpus_files(corpus), corpus):
        lines.extend(line for line in document.text.split("\n") if line.strip())
        if len(lines) > 5000:
            break
    return lines


@pytest.fixture(scope="session")
def reviews(tmp_path_factory: pytest.TempPathFactory, review_lines: list[str]) -> Path:
    """About 4 MB of JSON lines, none like another."""
    file = tmp_path_factory.mktemp("corpus") / "reviews.jsonl"
    with file.open("w") as stream:
        for number in range(40_000):
            text = f"{review_lines[number % len(review_lines)]} {number}"
            stream.write(json.dumps({"text": text}, ensure_ascii=False) + "\n")
    return file
