"""What a shard folder holds, for a person to look at."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from rich.bar import Bar
from rich.console import Console
from rich.table import Table
from tokenizers import Tokenizer

from configs.errors import BadInput
from data_prep.manifest import Manifest, read_manifest, shard_folder
from data_prep.shards import Shard, open_shard
from data_prep.tokenizer import TOKENIZER_FILE, load_tokenizer

SHOWN_TOKENS = 10
COUNTED_TOKENS = 20_000_000


@dataclass(frozen=True)
class Inspection:
    """The training part of a shard folder, summed up."""

    folder: Path
    manifest: Manifest
    length_edges: tuple[int, ...]
    """Powers of two; document lengths in tokens fall between neighbours."""
    length_counts: tuple[int, ...]
    token_counts: NDArray[np.int64]
    """Occurrences of each id among the first `COUNTED_TOKENS` training tokens."""


def inspect_shards(path: Path) -> Inspection:
    """Sum up a shard folder.

    Raises:
        BadInput: the folder is not whole.
    """
    folder = shard_folder(path)
    manifest = read_manifest(folder)
    shards = training_shards(folder, manifest)
    lengths = np.concatenate([shard.lengths for shard in shards]) if shards else np.zeros(0, np.int32)
    top = max(1, int(lengths.max(initial=1)))
    edges = [2**power for power in range(top.bit_length() + 1)]
    histogram, _ = np.histogram(lengths, bins=edges)
    counts = np.zeros(manifest.vocab_size, np.int64)
    left = COUNTED_TOKENS
    for shard in shards:
        counts += np.bincount(shard.tokens[:left].astype(np.int64), minlength=manifest.vocab_size)
        left = max(0, left - len(shard.tokens))
    return Inspection(folder, manifest, tuple(edges), tuple(int(n) for n in histogram), counts)


def training_shards(folder: Path, manifest: Manifest) -> list[Shard]:
    """The training shards, open, in order."""
    return [open_shard(folder / stem) for stem in manifest.train.stems]


def tokenizer_near(folder: Path, named: str | None) -> Tokenizer:
    """The tokenizer `named`, or the one that lies as `tokenizer` beside the shards or in the run folder above.

    Raises:
        BadInput: there is none.
    """
    places = [Path(named)] if named else [parent / "tokenizer" for parent in list(folder.resolve().parents)[:2]]
    for place in places:
        if (place / TOKENIZER_FILE).is_file():
            return load_tokenizer(place)
    raise BadInput(f"{folder}: no tokenizer in {' or '.join(map(str, places))}; name it with --tokenizer DIR")


def decoded_document(inspection: Inspection, number: int, tokenizer: Tokenizer) -> str:
    """Training document `number` as text, `<s>` and `</s>` shown.

    Raises:
        BadInput: there is no such document.
    """
    left = number
    for shard in training_shards(inspection.folder, inspection.manifest):
        if 0 <= left < len(shard.lengths):
            text: str = tokenizer.decode(shard.document(left).tolist(), skip_special_tokens=False)
            return text
        left -= len(shard.lengths)
    count = inspection.manifest.train.counts.documents
    raise BadInput(f"--document {number}: the training part has documents 0 to {count - 1}")


def print_inspection(inspection: Inspection, tokenizer: Tokenizer, console: Console) -> None:
    """Show counts, ratios, document lengths, and the commonest and rarest tokens."""
    console.print(str(inspection.folder), style="bold", markup=False, soft_wrap=True)
    table = Table("split", "documents", "tokens", "bytes", "characters", "bytes a token")
    for name, split in (("train", inspection.manifest.train), ("held-out", inspection.manifest.held_out)):
        counts = split.counts
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
        shown = "  ".join(f"{tokenizer.id_to_token(int(i))!r} {int(inspection.token_counts[i]):,}" for i in ids)
        console.print(f"{title}: {shown}", markup=False, highlight=False)
    never = inspection.manifest.vocab_size - len(seen)
    console.print(f"{never:,} of {inspection.manifest.vocab_size:,} tokens do not occur", highlight=False)
