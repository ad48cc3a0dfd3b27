"""What a shard folder holds, shown to a person."""

from dataclasses import dataclass
from pathlib import Path
from typing import get_args

import numpy as np
from numpy.typing import NDArray
from rich.bar import Bar
from rich.console import Console
from rich.table import Table

from malmoi.data_prep.shards.indexed_dataset import Shard
from malmoi.data_prep.shards.lengths import LengthHistogram, length_histogram
from malmoi.data_prep.shards.manifest import Manifest, SplitName, read_manifest, shard_folder
from malmoi.data_prep.shards.token_stream import open_shards
from malmoi.data_prep.tokenizer.encode import Decoder, load_decoder, tokenizer_checksum
from malmoi.errors import UserError

SHOWN_TOKENS = 10
COUNTED_TOKENS = 20_000_000
CHUNK = 1_000_000


@dataclass(frozen=True)
class Inspection:
    """A summary of the training split of a shard folder."""

    folder: Path
    manifest: Manifest
    length_edges: tuple[int, ...]
    """Powers of two; document lengths in tokens fall between neighbors."""
    length_counts: tuple[int, ...]
    token_counts: NDArray[np.int64]
    """Occurrences of each id among the first `COUNTED_TOKENS` training tokens."""


def inspect_shards(path: Path) -> Inspection:
    """Return a summary of a shard folder.

    Raises:
        UserError: the folder is not complete, or holds what is no id.
    """
    folder = shard_folder(path)
    manifest = read_manifest(folder)
    edges, documents = _by_powers_of_two(length_histogram(folder, manifest.train, manifest.train.counts.documents + 1))
    counts = np.zeros(manifest.vocab_size, np.int64)
    left = COUNTED_TOKENS
    for shard in open_shards(folder, manifest.train):
        for start in range(0, min(left, len(shard.tokens)), CHUNK):
            tokens = shard.tokens[start : min(start + CHUNK, left)]
            _require_known(tokens, shard, manifest)
            counts += np.bincount(tokens, minlength=manifest.vocab_size)
        left = max(0, left - len(shard.tokens))
    return Inspection(folder, manifest, edges, documents, counts)


def _by_powers_of_two(histogram: LengthHistogram) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Return edges up to beyond the longest document, and the documents between neighbors."""
    edges = histogram.edges[:-1]
    powers = np.flatnonzero(edges & (edges - 1) == 0)
    documents = np.add.reduceat(histogram.documents, powers)
    bins = 1 + max(np.flatnonzero(documents).tolist(), default=0)
    return tuple(2**power for power in range(bins + 1)), tuple(documents[:bins].tolist())


def _require_known(tokens: NDArray[np.generic], shard: Shard, manifest: Manifest) -> None:
    """Check that every token is an id of the vocabulary.

    Raises:
        UserError: one is not.
    """
    for wrong in (int(tokens.min(initial=0)), int(tokens.max(initial=0))):
        if not 0 <= wrong < manifest.vocab_size:
            raise UserError(
                f"{shard.stem}.bin: holds the id {wrong}, and the vocabulary ends at {manifest.vocab_size - 1}; run "
                f"`malmoi verify {shard.stem.parent}`"
            )


def tokenizer_near(folder: Path) -> Path | None:
    """Return the folder `tokenizer` beside the shards or in the run folder above, where there is one."""
    places = [parent / "tokenizer" for parent in list(folder.resolve().parents)[:2]]
    return next((place for place in places if place.is_dir()), None)


def decoder_of(inspection: Inspection, named: str | None) -> Decoder:
    """Return what decodes the shards: the tokenizer `named`, or the one near them.

    Raises:
        UserError: there is none, or it is not the one that the shards were made with.
    """
    place = Path(named) if named else tokenizer_near(inspection.folder)
    if place is None:
        raise UserError(f"{inspection.folder}: no folder `tokenizer` beside or above it; name one with --tokenizer DIR")
    if tokenizer_checksum(place) != inspection.manifest.tokenizer:
        raise UserError(f"{inspection.folder}: made with another tokenizer than {place}; name it with --tokenizer DIR")
    return load_decoder(place)


def decoded_document(inspection: Inspection, number: int, decoder: Decoder, name: SplitName = "train") -> str:
    """Return document `number` of a split as text, `<s>` and `</s>` shown.

    Raises:
        UserError: there is no such document, or it holds what is no id.
    """
    manifest = inspection.manifest
    split = manifest.split(name)
    left = number
    for shard in open_shards(inspection.folder, split):
        if 0 <= left < len(shard.lengths):
            tokens = shard.document(left)
            _require_known(tokens, shard, manifest)
            return decoder.decode(tokens.tolist())
        left -= len(shard.lengths)
    count = split.counts.documents
    has = f"has documents 0 to {count - 1}" if count else "has no document"
    raise UserError(f"--document {number}: the split {name} {has}")


def print_inspection(inspection: Inspection, decoder: Decoder, console: Console) -> None:
    """Show counts, ratios, document lengths, and the commonest and rarest tokens."""
    console.print(str(inspection.folder), style="bold", markup=False, soft_wrap=True)
    table = Table("split", "documents", "tokens", "bytes", "characters", "bytes a token")
    for name in get_args(SplitName):
        counts = inspection.manifest.split(name).counts
        ratio = f"{counts.bytes / counts.tokens:.3f}" if counts.tokens else "-"
        numbers = (counts.documents, counts.tokens, counts.bytes, counts.characters)
        table.add_row(name, *(f"{number:,}" for number in numbers), ratio)
    console.print(table)
    most = max(inspection.length_counts, default=0)
    lengths = Table("tokens a document", "documents", "")
    for low, high, count in zip(
        inspection.length_edges, inspection.length_edges[1:], inspection.length_counts, strict=False
    ):
        if count:
            lengths.add_row(f"{low:,} to {high - 1:,}", f"{count:,}", Bar(most, 0, count, width=40))
    console.print(lengths)
    ordered = np.argsort(-inspection.token_counts, kind="stable")
    seen = ordered[: int((inspection.token_counts > 0).sum())]
    for title, ids in (("most frequent", seen[:SHOWN_TOKENS]), ("least frequent", seen[-SHOWN_TOKENS:])):
        shown = "  ".join(f"{decoder.token(int(i))!r} {int(inspection.token_counts[i]):,}" for i in ids)
        console.print(f"{title}: {shown}", markup=False, highlight=False)
    never = inspection.manifest.vocab_size - len(seen)
    console.print(f"{never:,} of {inspection.manifest.vocab_size:,} tokens do not occur", highlight=False)
