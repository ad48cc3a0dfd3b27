"""Perplexity of models on the validation split of shards, or on text: `malmoi evaluate`."""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from rich.table import Table

from malmoi.configs.commands import EvaluateOptions, with_overrides
from malmoi.configs.corpus import CorpusSettings, TextSettings
from malmoi.console import table_console
from malmoi.data_prep.pipeline.corpus import Document, read_documents
from malmoi.data_prep.readers.sources import corpus_files
from malmoi.data_prep.shards.manifest import MANIFEST_FILE, read_manifest, shard_folder
from malmoi.data_prep.shards.token_stream import open_split
from malmoi.data_prep.tokenizer.encode import load_encoder, tokenizer_checksum
from malmoi.errors import UserError
from malmoi.evaluation.perplexity import (
    PerplexityResult,
    Tokens,
    Windows,
    format_perplexity,
    perplexity_result,
    sum_window_losses,
)
from malmoi.inference.model_folder import LoadedModel, as_loaded


def evaluate(
    model: LoadedModel | str | Path,
    data: str | Path,
    reading: TextSettings | None = None,
    *,
    batch_size: int = 8,
    stride: int | None = None,
    **text: Any,
) -> PerplexityResult:
    """Return loss, perplexity and bits per byte of a model.

        malmoi.evaluate("runs/demo/model", "test.jsonl", text_field="body").bits_per_byte

    Args:
        model: a model folder, or what `load_model` returned.
        data: a shard folder, of which the validation split is read, or a file or folder of text.
        reading: how text is read; none: the defaults of `TextSettings`.
        batch_size: windows in a batch.
        stride: tokens from one window to the next, up to the context length; none: the context length. A smaller one
            gives each token more context and takes longer.
        **text: settings of `TextSettings` by name, in place of those in `reading`: text_field, document, encoding, ...

    Raises:
        UserError: model, data or tokenizer cannot be used or do not fit each other, or a setting is unknown or out of
            range.
    """
    settings = with_overrides(reading or TextSettings(), text)
    loaded = as_loaded(model)
    if loaded.folder is None:
        raise UserError("the model to evaluate has no folder, and so no tokenizer file; save it and load that folder")
    stride = loaded.context_length if stride is None else stride
    if not 1 <= stride <= loaded.context_length:
        raise UserError(f"stride {stride}: choose 1 to the model's context of {loaded.context_length}")
    if batch_size < 1:
        raise UserError(f"batch_size {batch_size}: choose 1 or more")
    path = Path(data)
    source = _val_split(path, loaded.folder) if holds_shards(path) else _tokenized(path, loaded.folder, settings)
    windows = Windows(len(source.stream), loaded.context_length, stride)
    with torch.no_grad():
        measured = sum_window_losses(
            lambda ids: loaded.model(input_ids=ids, use_cache=False).logits,
            source.stream,
            windows,
            range(len(windows)),
            batch_size,
            loaded.model.config.vocab_size,
            loaded.model.device,
        )
    return perplexity_result(measured, len(source.stream), source.text_bytes)


@dataclass(frozen=True)
class ModelResult:
    """A model and its result."""

    model: str
    result: PerplexityResult


def evaluate_models(options: EvaluateOptions) -> Iterator[ModelResult]:
    """Yield the result of each of `options.model`, with one model in memory at a time.

    Raises:
        UserError: a model, data or tokenizer cannot be used or do not fit each other.
    """
    for model in options.model:
        result = evaluate(model, options.data, options, batch_size=options.batch_size, stride=options.stride)
        yield ModelResult(model, result)


def holds_shards(path: Path) -> bool:
    """Return whether `path` is a shard folder, or a folder that holds one or more; anything else is text."""
    inside = (file for file in path.glob(f"*/{MANIFEST_FILE}") if not file.parent.name.startswith("."))
    return (path / MANIFEST_FILE).is_file() or any(inside)


def text_documents(path: str | Path, reading: TextSettings) -> Iterator[Document]:
    """Yield the documents of the file or folder `path`, read as `reading` says.

    Raises:
        UserError: there is none, or one cannot be read.
    """
    settings = CorpusSettings(
        input=(str(path),), **{entry.name: getattr(reading, entry.name) for entry in fields(TextSettings)}
    )
    return read_documents(corpus_files(settings), settings)


@dataclass(frozen=True)
class TokenArray:
    """Tokens in memory, read like a `TokenStream`."""

    tokens: NDArray[np.int32]

    def __len__(self) -> int:
        return len(self.tokens)

    def read_into(self, start: int, out: NDArray[np.int64]) -> None:
        """Fill `out` with the tokens from `start` on."""
        out[:] = self.tokens[start : start + len(out)]


@dataclass(frozen=True)
class _Source:
    """A stream of tokens, and the bytes of the text that it was made from."""

    stream: Tokens
    text_bytes: int


def _val_split(path: Path, model: Path) -> _Source:
    folder = shard_folder(path)
    manifest = read_manifest(folder)
    if tokenizer_checksum(model) != manifest.tokenizer:
        raise UserError(f"{folder}: made with another tokenizer than {model}; evaluate the model on text instead")
    if manifest.val.counts.tokens < 2:
        raise UserError(
            f"{folder}: its validation split is empty; prepare with a larger data.val_fraction, or evaluate on text"
        )
    return _Source(open_split(folder, "val"), manifest.val.counts.bytes)


def _tokenized(path: Path, model: Path, reading: TextSettings) -> _Source:
    encoder, _ = load_encoder(model)
    ids: list[NDArray[np.int32]] = []
    text_bytes = 0
    for document in text_documents(path, reading):
        text_bytes += len(document.text.encode())
        ids.append(encoder.encode([document.text])[0].astype(np.int32))
    if not ids:
        raise UserError(f"{path}: holds no text to evaluate on")
    return _Source(TokenArray(np.concatenate(ids)), text_bytes)


def results_as_json(results: Sequence[ModelResult]) -> str:
    """Return one JSON object: the result of one model, or the list `results` of several, each with its `model`."""
    if len(results) == 1:
        return json.dumps(results[0].result.as_dict())
    return json.dumps({"results": [{"model": each.model, **each.result.as_dict()} for each in results]})


def print_results(data: str, results: Sequence[ModelResult]) -> None:
    """Print a table with a row a model."""
    table = Table(title=data)
    table.add_column("model", overflow="fold")
    for name in ("loss", "perplexity", "bits per byte", "tokens", "bytes"):
        table.add_column(name, justify="right")
    for each in results:
        result = each.result
        table.add_row(
            each.model,
            f"{result.loss:.4f}",
            format_perplexity(result.perplexity),
            f"{result.bits_per_byte:.4f}",
            f"{result.tokens:,}",
            f"{result.bytes:,}",
        )
    table_console().print(table)
