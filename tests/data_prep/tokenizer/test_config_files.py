"""A damaged file of a tokenizer's folder is named before anything is prepared with it."""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from malmoi.configs.corpus import CorpusSettings
from malmoi.configs.data import DataSettings
from malmoi.data_prep.pipeline.build import prepare_shards
from malmoi.data_prep.tokenizer.encode import auto_tokenizer, check_tokenizer, load_encoder, vocabulary_size
from malmoi.errors import UserError

OBJECTS = ("tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "config.json")
DAMAGES = {
    "truncated": b'{"tokenizer_class": "PreTrain',
    "binary": bytes(range(128, 192)),
    "empty": b"",
    "list": b"[]",
    "null": b"null",
    "deep": b'{"a": ' + b"[" * 100_000,
}


@pytest.fixture
def tokenizer(tokenizer_folder: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tokenizer_folder, tmp_path / "tokenizer"))


@pytest.fixture
def refused(tokenizer: Path, tmp_path: Path) -> Callable[[str], None]:
    """A check that whatever uses the folder refuses it in one line that matches."""
    (tmp_path / "a.txt").write_text("하나\n", encoding="utf-8")
    corpus = CorpusSettings(input=(str(tmp_path / "a.txt"),))
    uses: tuple[Callable[[], Any], ...] = (
        lambda: check_tokenizer(tokenizer),
        lambda: load_encoder(tokenizer),
        lambda: vocabulary_size(tokenizer),
        lambda: auto_tokenizer(tokenizer),
        lambda: prepare_shards(corpus, DataSettings(workers=1), tokenizer, tmp_path / "out"),
    )

    def check(pattern: str) -> None:
        for use in uses:
            with pytest.raises(UserError, match=pattern) as error:
                use()
            assert "\n" not in str(error.value)

    return check


@pytest.mark.parametrize("damage", sorted(DAMAGES))
def test_a_damaged_file_is_named(tokenizer: Path, refused: Callable[[str], None], damage: str) -> None:
    for name in OBJECTS:
        kept = (tokenizer / name).read_bytes() if (tokenizer / name).is_file() else None
        (tokenizer / name).write_bytes(DAMAGES[damage])
        refused(rf"{name}: (damaged|cannot be read).*; copy it from where the tokenizer came from")
        (tokenizer / name).unlink()
        if kept is not None:
            (tokenizer / name).write_bytes(kept)
    check_tokenizer(tokenizer)


@pytest.mark.parametrize("make", [Path.mkdir, os.mkfifo])
def test_what_is_no_file_is_named(
    tokenizer: Path, refused: Callable[[str], None], make: Callable[[Path], object]
) -> None:
    make(tokenizer / "special_tokens_map.json")
    refused(r"special_tokens_map\.json: a folder, pipe or device and no file")


def test_values_that_no_tokenizer_has_are_named(tokenizer: Path, refused: Callable[[str], None]) -> None:
    (tokenizer / "added_tokens.json").write_text('{"<x>": "y"}', encoding="utf-8")
    refused(r"added_tokens\.json: '<x>' has 'y' for an id")
    (tokenizer / "added_tokens.json").unlink()
    (tokenizer / "chat_template.jinja").write_bytes(b"\xff")
    refused(r"chat_template\.jinja: cannot be read")
    (tokenizer / "chat_template.jinja").unlink()
    for value in (5, ["</s>"], {"id": 3}):
        (tokenizer / "special_tokens_map.json").write_text(json.dumps({"eos_token": value}), encoding="utf-8")
        refused(r"special_tokens_map\.json: eos_token is .*, no token")


@pytest.mark.parametrize("name", ["tokenizer_config.json", "config.json"])
def test_code_of_the_tokenizer_s_own_is_refused(tokenizer: Path, refused: Callable[[str], None], name: str) -> None:
    file = tokenizer / name
    before = json.loads(file.read_bytes()) if file.is_file() else {}
    file.write_text(json.dumps({**before, "auto_map": {"AutoTokenizer": ["own.Own", None]}}), encoding="utf-8")
    (tokenizer / "own.py").write_text("raise SystemExit('ran')\n", encoding="utf-8")
    refused(rf"{name}: `auto_map` asks for code of the tokenizer's own, which is never run")
    # That of a model is no concern of the tokenizer's.
    if name == "config.json":
        file.write_text(json.dumps({"auto_map": {"AutoModel": "own.Own"}}), encoding="utf-8")
        check_tokenizer(tokenizer)
