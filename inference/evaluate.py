"""`malmoi evaluate`: model folders scored on the held-out part of shards, or on text."""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from rich.table import Table

from configs.commands import EvaluateOptions
from configs.errors import BadInput
from configs.table_console import table_console
from data_prep.build import open_split
from data_prep.encode import load_encoder, tokenizer_checksum
from data_prep.manifest import read_manifest, shard_folder
from inference.data_option import holds_shards, text_documents
from inference.model_folder import load_model
from inference.score import Score, Tokens, Windows, nats_of_windows, readable_perplexity, score_of


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
class ScoredText:
    """A stream to score and the bytes of text behind it."""

    stream: Tokens
    text_bytes: int


@dataclass(frozen=True)
class ModelScore:
    """A model and its score."""

    model: str
    score: Score


def evaluate_models(options: EvaluateOptions) -> Iterator[ModelScore]:
    """The score of each of `options.model`, one model in memory at a time.

    Raises:
        BadInput: a model, data or tokenizer are not usable, or do not fit each other.
    """
    for model in options.model:
        yield ModelScore(model, evaluate_model(Path(model), options))


def evaluate_model(model: Path, options: EvaluateOptions) -> Score:
    """The score of `model` on `options.data`.

    Raises:
        BadInput: model, data or tokenizer are not usable, or do not fit each other.
    """
    loaded = load_model(model)
    data = Path(options.data)
    text = _held_out_shards(data, model) if holds_shards(data) else _tokenized_text(model, options)
    stride = loaded.context if options.stride is None else options.stride
    if not 1 <= stride <= loaded.context:
        raise BadInput(f"--stride {stride}: choose 1 to the model's context of {loaded.context}")
    if options.batch < 1:
        raise BadInput(f"--batch {options.batch}: choose 1 or more")
    windows = Windows(len(text.stream), loaded.context, stride)
    with torch.no_grad():
        measured = nats_of_windows(
            lambda ids: loaded.model(input_ids=ids, use_cache=False).logits,
            text.stream,
            windows,
            range(len(windows)),
            options.batch,
            loaded.model.config.vocab_size,
            loaded.model.device,
        )
    return score_of(measured, len(text.stream), text.text_bytes)


def _held_out_shards(path: Path, model: Path) -> ScoredText:
    folder = shard_folder(path)
    manifest = read_manifest(folder)
    if tokenizer_checksum(model) != manifest.tokenizer:
        raise BadInput(f"{folder}: made with another tokenizer than {model}; score the model on text instead")
    if manifest.held_out.counts.tokens < 2:
        raise BadInput(f"{folder}: holds no held-out documents; prepare with a larger data.held_out, or score text")
    return ScoredText(open_split(folder, "held_out"), manifest.held_out.counts.bytes)


def _tokenized_text(model: Path, options: EvaluateOptions) -> ScoredText:
    encoder, _ = load_encoder(model)
    ids: list[NDArray[np.int32]] = []
    text_bytes = 0
    for document in text_documents(options.data, options):
        text_bytes += len(document.text.encode())
        ids.append(encoder.encode([document.text])[0].astype(np.int32))
    if not ids:
        raise BadInput(f"{options.data}: holds no text to score")
    return ScoredText(TokenArray(np.concatenate(ids)), text_bytes)


def scores_as_json(scores: Sequence[ModelScore]) -> str:
    """One JSON object: the score of one model, or for several `results`, a list of scores with `model` in each."""
    if len(scores) == 1:
        return json.dumps(scores[0].score.as_dict())
    return json.dumps({"results": [{"model": each.model, **each.score.as_dict()} for each in scores]})


def print_scores(data: str, scores: Sequence[ModelScore]) -> None:
    """Show a row a model."""
    table = Table(title=data)
    table.add_column("model", overflow="fold")
    for name in ("loss", "perplexity", "bits per byte", "tokens", "bytes"):
        table.add_column(name, justify="right")
    for each in scores:
        score = each.score
        table.add_row(
            each.model,
            f"{score.loss:.4f}",
            readable_perplexity(score.perplexity),
            f"{score.bits_per_byte:.4f}",
            f"{score.tokens:,}",
            f"{score.bytes:,}",
        )
    table_console().print(table)
