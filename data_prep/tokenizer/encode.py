"""Texts into token ids, by the fastest way that gives exactly what `tokenizers` gives."""

import json
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer

from malmoi.checksums import checksum, file_checksum
from malmoi.data_prep.tokenizer.config_files import check_config_files, special_token_named
from malmoi.data_prep.tokenizer.train import BOS, EOS, SPECIAL_TOKENS, TOKENIZER_FILE
from malmoi.errors import UserError, first_line

BATCH_CHARACTERS = 1_000_000


class Encoder(Protocol):
    """Texts into token ids."""

    @property
    def slow_name(self) -> str:
        """What to call it in the log, where it is not the fast path; empty where it is."""
        ...

    def encode(self, texts: list[str]) -> tuple[NDArray[Any], NDArray[np.int64]]:
        """Return the ids of all texts, end to end, and how many are each text's.

        Each text's ids are between `<s>` and `</s>`, or before the one token that a tokenizer has for both.

        Returns:
            ids: 1-D, any integer dtype that holds the vocabulary.
            lengths: 1-D int64, one a text, at least 1.
        """
        ...


class PlainEncoder:
    """Encodes with `tokenizers` itself: right for every tokenizer that it reads."""

    slow_name = "`tokenizers`"

    def __init__(self, tokenizer: Any, bos: int | None, eos: int) -> None:
        self._tokenizer, self._eos = tokenizer, eos
        self._before = [] if bos is None or bos == eos else [bos]

    def encode(self, texts: list[str]) -> tuple[NDArray[Any], NDArray[np.int64]]:
        """See `Encoder.encode`."""
        pieces: list[NDArray[np.int32]] = []
        lengths: list[int] = []
        start = 0
        while start < len(texts):
            end, held = start, 0
            while end < len(texts) and held < BATCH_CHARACTERS:
                held += len(texts[end])
                end += 1
            batch = [[*self._before, *ids, self._eos] for ids in self._ids_of(texts[start:end])]
            lengths.extend(map(len, batch))
            pieces.append(np.fromiter(chain.from_iterable(batch), dtype=np.int32))
            start = end
        ids = np.concatenate(pieces) if pieces else np.zeros(0, dtype=np.int32)
        return ids, np.array(lengths, dtype=np.int64)

    def _ids_of(self, texts: list[str]) -> list[list[int]]:
        return [encoding.ids for encoding in self._tokenizer.encode_batch_fast(texts, add_special_tokens=False)]


class SlowEncoder(PlainEncoder):
    """Encodes with a tokenizer that `transformers` implements in Python."""

    slow_name = "a tokenizer in Python"

    def _ids_of(self, texts: list[str]) -> list[list[int]]:
        ids: list[list[int]] = self._tokenizer(texts, add_special_tokens=False, split_special_tokens=True)["input_ids"]
        return ids


class Decoder(Protocol):
    """Token ids into text, for a person to read."""

    def decode(self, ids: list[int]) -> str:
        """Return the text, special tokens shown."""
        ...

    def token(self, number: int) -> str:
        """Return how the vocabulary spells an id."""
        ...


@dataclass(frozen=True)
class _TokenizersDecoder:
    tokenizer: Tokenizer

    def decode(self, ids: list[int]) -> str:
        return str(self.tokenizer.decode(ids, skip_special_tokens=False))

    def token(self, number: int) -> str:
        return str(self.tokenizer.id_to_token(number))


@dataclass(frozen=True)
class _TransformersDecoder:
    tokenizer: Any

    def decode(self, ids: list[int]) -> str:
        return str(self.tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False))

    def token(self, number: int) -> str:
        return str(self.tokenizer.convert_ids_to_tokens(number))


def load_decoder(folder: Path) -> Decoder:
    """Return what decodes the ids that `load_encoder` of the same folder gives.

    Raises:
        UserError: there is no tokenizer.
    """
    if (folder / TOKENIZER_FILE).is_file():
        return _TokenizersDecoder(_read(folder))
    return _TransformersDecoder(auto_tokenizer(folder))


def check_tokenizer(folder: Path) -> None:
    """Check that `load_encoder` will find a tokenizer in `folder`, without what encoding takes to set up.

    Raises:
        UserError: there is no tokenizer, a file of it is damaged, or it has no token that ends a text.
    """
    if (folder / TOKENIZER_FILE).is_file():
        _id_of_end(_read(folder), folder, special_token_named(folder, "eos_token", EOS))
    else:
        _from_transformers(folder)


def load_encoder(folder: Path) -> tuple[Encoder, int]:
    """Return the encoder for the tokenizer in `folder`, and the number of ids that its vocabulary needs.

    A special token spelled out in a text is text.

    Raises:
        UserError: there is no tokenizer, a file of it is damaged, or it has no token that ends a text.
    """
    if not (folder / TOKENIZER_FILE).is_file():
        return _from_transformers(folder)
    return _around(_read(folder), folder, *_ends(folder))


def vocabulary_size(folder: Path) -> int:
    """Return the number of ids that the tokenizer in `folder` needs: its largest and 1.

    Raises:
        UserError: there is no tokenizer.
    """
    if not (folder / TOKENIZER_FILE).is_file():
        return _from_transformers(folder)[1]
    return _size(_read(folder))


def _read(folder: Path) -> Tokenizer:
    file = folder / TOKENIZER_FILE
    check_config_files(folder)
    try:
        return Tokenizer.from_file(str(file))
    except Exception as error:  # `tokenizers` raises plain Exception for every error of the file
        raise UserError(f"{file}: not a tokenizer that `tokenizers` reads ({error}); train it again") from error


def _size(tokenizer: Tokenizer) -> int:
    return 1 + max(tokenizer.get_vocab(with_added_tokens=True).values(), default=-1)


def _id_of_end(tokenizer: Tokenizer, folder: Path, eos: str) -> int:
    end: int | None = tokenizer.token_to_id(eos)
    if end is None:
        raise UserError(
            f"{folder}: the tokenizer has no token '{eos}' to end a text; set eos_token in tokenizer_config.json"
        )
    return end


def _around(tokenizer: Tokenizer, folder: Path, bos: str, eos: str) -> tuple[Encoder, int]:
    tokenizer.encode_special_tokens = True
    tokenizer.no_truncation()
    tokenizer.no_padding()
    size = _size(tokenizer)
    end = _id_of_end(tokenizer, folder, eos)
    if (bos, eos) == (BOS, EOS) and all(tokenizer.token_to_id(token) is not None for token in SPECIAL_TOKENS):
        from malmoi.data_prep.tokenizer.fast_encode import (
            FastEncoder,  # late: numba is slow to import, and only workers encode
        )

        fast = FastEncoder.for_tokenizer(tokenizer)
        if fast is not None:
            return fast, size
    return PlainEncoder(tokenizer, tokenizer.token_to_id(bos), end), size


def _ends(folder: Path) -> tuple[str, str]:
    """Return the tokens that begin and end a text."""
    return special_token_named(folder, "bos_token", BOS), special_token_named(folder, "eos_token", EOS)


def auto_tokenizer(folder: Path) -> Any:
    """Return the tokenizer as `transformers` loads it, without running code that it brings.

    Raises:
        UserError: there is no such folder, a file in it is damaged, or it holds no tokenizer.
    """
    from transformers import AutoTokenizer

    if not folder.is_dir():
        raise UserError(f"{folder}: no such folder; train a tokenizer with `malmoi tokenizer --input F --out {folder}`")
    check_config_files(folder)
    try:
        return AutoTokenizer.from_pretrained(str(folder), local_files_only=True, trust_remote_code=False)
    except Exception as error:  # each kind of tokenizer fails in its own way
        raise UserError(f"{folder}: no tokenizer that AutoTokenizer loads ({first_line(error)}); train one") from error


def _from_transformers(folder: Path) -> tuple[Encoder, int]:
    loaded = auto_tokenizer(folder)
    if loaded.eos_token_id is None and loaded.sep_token_id is None:
        raise UserError(f"{folder}: the tokenizer has no eos_token to end a text; set it in tokenizer_config.json")
    bos, eos = loaded.bos_token or loaded.cls_token or "", loaded.eos_token or loaded.sep_token
    backend = getattr(loaded, "backend_tokenizer", None)
    if isinstance(backend, Tokenizer):
        return _around(backend, folder, bos, eos)
    begin = loaded.convert_tokens_to_ids(bos) if bos else None
    return SlowEncoder(loaded, begin, loaded.convert_tokens_to_ids(eos)), 1 + max(loaded.get_vocab().values())


def tokenizer_checksum(folder: Path) -> str:
    """Return 128 bits over what decides ids: `tokenizer.json`, or all files where there is none, and the text's ends.

    Of a tokenizer that Malmoi trained it is the checksum of `tokenizer.json`.

    Raises:
        UserError: there is no such folder, or its configuration is damaged.
    """
    if not folder.is_dir():
        raise UserError(f"{folder}: no such folder; train a tokenizer with `malmoi tokenizer --input F --out {folder}`")
    file = folder / TOKENIZER_FILE
    if file.is_file():
        ends = _ends(folder)
        if ends == (BOS, EOS):
            return file_checksum(file)
        parts = [file_checksum(file), *ends]
    else:
        parts = [
            part for file in sorted(folder.iterdir()) if file.is_file() for part in (file.name, file_checksum(file))
        ]
    return checksum(json.dumps(parts).encode())
