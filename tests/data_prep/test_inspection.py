"""What `inspect` shows is what the shards hold."""

import io
import re
from collections import Counter
from pathlib import Path

import pytest
from rich.console import Console

from configs.errors import BadInput
from configs.schema import CorpusSettings, DataSettings
from data_prep.build import prepare_shards
from data_prep.inspection import decoded_document, inspect_shards, print_inspection
from data_prep.tokenizer import load_tokenizer

TEXTS = ["영화가 재미있다", "또 보고 싶은 영화", "짧다", "영화 " * 40 + "끝"]


def test_inspection(tokenizer_folder: Path, tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("\n".join(TEXTS))
    corpus = CorpusSettings(input=(str(tmp_path / "a.txt"),))
    folder = prepare_shards(corpus, DataSettings(held_out=0), tokenizer_folder, tmp_path / "out")
    tokenizer = load_tokenizer(tokenizer_folder)
    ids = [[0, *tokenizer.encode(text, add_special_tokens=False).ids, 2] for text in TEXTS]
    found = inspect_shards(folder)
    assert found.manifest.train.counts.documents == 4
    expected = Counter(token for document in ids for token in document)
    assert {token: int(n) for token, n in enumerate(found.token_counts) if n} == expected
    buckets = dict(zip(found.length_edges, found.length_counts, strict=False))
    assert sum(buckets.values()) == 4
    for document in ids:
        assert buckets[1 << (len(document).bit_length() - 1)] > 0
    for number, text in enumerate(TEXTS):
        assert decoded_document(found, number, tokenizer) == f"<s>{text}</s>"
    with pytest.raises(BadInput, match="documents 0 to 3"):
        decoded_document(found, 4, tokenizer)
    shown = io.StringIO()
    print_inspection(found, tokenizer, Console(file=shown, width=120))
    lines = [" ".join(re.sub("[┃│]", " ", line).split()) for line in shown.getvalue().splitlines()]
    text_bytes = sum(len(text.encode()) for text in TEXTS)
    tokens = sum(expected.values())
    ratio = f"{text_bytes / tokens:.3f}"
    assert f"train 4 {tokens:,} {text_bytes:,} {sum(map(len, TEXTS)):,} {ratio}" in lines
    assert "held-out 0 0 0 0 -" in lines
    bins = Counter(1 << (len(document).bit_length() - 1) for document in ids)
    for low, count in bins.items():
        assert any(line.startswith(f"{low} to {2 * low - 1} {count}") for line in lines)
    ordered = sorted(expected.items(), key=lambda entry: (-entry[1], entry[0]))
    for title, some in (("most", ordered[:10]), ("least", ordered[-10:])):
        named = "  ".join(f"{tokenizer.id_to_token(token)!r} {count}" for token, count in some)
        assert f"{title} frequent: {named}" in shown.getvalue()
    assert f"{found.manifest.vocab_size - len(expected):,} of {found.manifest.vocab_size:,} tokens do not" in lines[-1]
