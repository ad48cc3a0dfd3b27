"""Labeled examples: rows to token ids, and those to batches in a seeded order."""

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tokenizers import AddedToken, processors
from transformers import AutoTokenizer

from malmoi.configs.finetune import TaskSettings
from malmoi.errors import UserError, one_line
from malmoi.train.data.labeled_rows import Row
from malmoi.train.data.sample_order import permuted

DELIMITER, EXTRACT, PAD = "<delimiter>", "<extract>", "<pad>"


@dataclass(frozen=True)
class EncodedTexts:
    """Sequences of token ids."""

    ids: tuple[NDArray[np.int32], ...]
    """1-D each, from the start token to the extract token."""
    cut: int
    """Sequences that were longer than the context and lost their end, in a pair the longer text first."""


@dataclass(frozen=True)
class ExampleTokenizer:
    """A tokenizer that frames texts for a classifier."""

    tokenizer: Any
    context: int
    """Most tokens of a sequence."""

    @property
    def size(self) -> int:
        """Token ids, with those that fine-tuning adds."""
        return len(self.tokenizer)

    @property
    def pad(self) -> int:
        """The id that fills up shorter sequences on their right; never the last one that counts."""
        return int(self.tokenizer.pad_token_id)

    def encode(self, pairs: list[tuple[str, str | None]]) -> EncodedTexts:
        """Ids of texts and pairs of texts; a special token that is spelled out in one of them is text."""
        texts = [text for text, _ in pairs]
        others = [other for _, other in pairs if other is not None]
        words: dict[str, Any] = {"text": texts, **({"text_pair": others} if others else {})}
        whole = [len(ids) for ids in self.tokenizer(**words)["input_ids"]]
        fitted = self.tokenizer(**words, truncation=True, max_length=self.context)["input_ids"]
        return EncodedTexts(
            tuple(np.array(ids, dtype=np.int32) for ids in fitted), sum(length > self.context for length in whole)
        )

    def save(self, folder: Path) -> None:
        """Write the files that `AutoTokenizer` reads."""
        self.tokenizer.save_pretrained(folder)


def example_tokenizer(folder: Path, context: int) -> ExampleTokenizer:
    """The tokenizer of a model folder, with a delimiter and an extract token behind its own tokens.

    Raises:
        UserError: there is no tokenizer, or one that `tokenizers` does not read, or one without an end of text.
    """
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    except Exception as error:  # transformers raises OSError, ValueError, KeyError and `tokenizers`' own alike
        raise UserError(
            f"{folder}: no tokenizer that can be loaded ({one_line(error)}); export the model again"
        ) from error
    if not getattr(tokenizer, "is_fast", False):
        raise UserError(f"{folder}: its tokenizer has no tokenizer.json, which fine-tuning needs; convert it first")
    start = tokenizer.bos_token or tokenizer.eos_token
    if start is None:
        raise UserError(f"{folder}: the tokenizer has no bos_token to begin a text; set it in tokenizer_config.json")
    added = [DELIMITER, EXTRACT] + ([PAD] if tokenizer.pad_token is None else [])
    known = tokenizer.get_vocab()
    taken = [token for token in (DELIMITER, EXTRACT) if token in known]
    if taken:
        raise UserError(
            f"{folder}: its tokenizer has a token {taken[0]} already; give the model before its fine-tuning"
        )
    tokenizer.add_tokens([AddedToken(token, special=True, normalized=False) for token in added])
    if tokenizer.pad_token is None:
        tokenizer.pad_token = PAD
    ids = {token: tokenizer.convert_tokens_to_ids(token) for token in (start, DELIMITER, EXTRACT)}
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{start} $A {EXTRACT}",
        pair=f"{start} $A {DELIMITER} $B {EXTRACT}",
        special_tokens=list(ids.items()),
    )
    # Text is data: a special token spelled out in it must not become one, here or where the model is served.
    tokenizer.split_special_tokens = True
    tokenizer.backend_tokenizer.encode_special_tokens = True
    tokenizer.padding_side, tokenizer.truncation_side = "right", "right"
    tokenizer.model_max_length = context
    return ExampleTokenizer(tokenizer, context)


@dataclass(frozen=True)
class ExampleBatch:
    """Some examples as the model reads them, on the host."""

    ids: NDArray[np.int64]
    """`[examples x sequences, tokens]`, padded on the right, an example's sequences in a row."""
    lengths: NDArray[np.int64]
    """`[examples x sequences]`: tokens that are no padding."""
    answers: NDArray[Any]
    """`[examples]`: `int64` of a class or choice, or `float32`."""

    @property
    def sequences(self) -> int:
        """Of one example."""
        return len(self.ids) // len(self.answers)


@dataclass(frozen=True)
class Examples:
    """All examples of a file."""

    file: str
    ids: tuple[NDArray[np.int32], ...]
    """Of all sequences, an example's in a row."""
    answers: NDArray[Any]
    """`[examples]`: `int64` of a class or choice, or `float32`."""
    sequences: int
    """Of one example."""
    outputs: int
    """Numbers that the model gives for an example: a score a class or choice, or one."""
    cut: int
    """Sequences that were longer than the context."""
    pad: int

    def __len__(self) -> int:
        return len(self.answers)

    def batch(self, numbers: NDArray[np.int64]) -> ExampleBatch:
        """The examples of these numbers, in their order."""
        rows = (numbers[:, None] * self.sequences + np.arange(self.sequences)).reshape(-1)
        lengths = np.array([len(self.ids[row]) for row in rows], dtype=np.int64)
        ids = np.full((len(rows), int(lengths.max())), self.pad, dtype=np.int64)
        for place, row in enumerate(rows):
            ids[place, : lengths[place]] = self.ids[row]
        return ExampleBatch(ids, lengths, self.answers[numbers])

    def in_order(self, first_sample: int, count: int, seed: int) -> ExampleBatch:
        """Samples `first_sample` on of an endless training: each epoch is a permutation of its own."""
        epochs, indices = np.divmod(np.arange(first_sample, first_sample + count, dtype=np.int64), len(self))
        numbers = np.empty(count, dtype=np.int64)
        for epoch in np.unique(epochs).tolist():
            chosen = epochs == epoch
            numbers[chosen] = permuted(indices[chosen].astype(np.uint64), len(self), seed, epoch).astype(np.int64)
        return self.batch(numbers)

    def fingerprint(self) -> str:
        """What training on these examples depends on: every id and every answer."""
        hashed = hashlib.blake2b(digest_size=16)
        for ids in self.ids:
            hashed.update(len(ids).to_bytes(4, "little") + ids.tobytes())
        hashed.update(self.answers.tobytes())
        return hashed.hexdigest()


def classes_of(rows: list[Row], task: TaskSettings) -> tuple[str, ...]:
    """Names of the classes, or of the choices, in the order of the model's outputs; none for similarity.

    Raises:
        UserError: all rows are of one class.
    """
    if task.kind == "similarity":
        return ()
    if task.kind == "multiple_choice":
        return tuple(str(number) for number in range(len(rows[0].sequences)))
    names = tuple(sorted({str(row.answer) for row in rows}))
    if len(names) < 2:
        raise UserError(f"{task.train}: every row is of class '{names[0]}'; training needs two classes or more")
    return names


def encoded(
    rows: list[Row], file: str, task: TaskSettings, classes: tuple[str, ...], tokenizer: ExampleTokenizer
) -> Examples:
    """Rows as token ids and numbers.

    Args:
        classes: those of the training file.

    Raises:
        UserError: a class is none of those, or a row has another number of choices.
    """
    if task.kind == "multiple_choice":
        if len(rows[0].sequences) != len(classes):
            raise UserError(
                f"{rows[0].place}: has {len(rows[0].sequences)} choices and those of training {len(classes)}; "
                "give as many"
            )
        answers: NDArray[Any] = np.array([row.answer for row in rows], dtype=np.int64)
    elif task.kind == "similarity":
        answers = np.array([row.answer for row in rows], dtype=np.float32)
    else:
        numbers = {name: number for number, name in enumerate(classes)}
        unseen = next((row for row in rows if row.answer not in numbers), None)
        if unseen is not None:
            raise UserError(
                f"{unseen.place}: the class '{unseen.answer}' is none of those in {task.train} "
                f"({', '.join(classes)}); add examples of it there, or leave the row out"
            )
        answers = np.array([numbers[str(row.answer)] for row in rows], dtype=np.int64)
    texts = tokenizer.encode([texts for row in rows for texts in row.sequences])
    outputs = 1 if task.kind == "similarity" else len(classes)
    return Examples(file, texts.ids, answers, len(rows[0].sequences), outputs, texts.cut, tokenizer.pad)
