"""From files to a shard folder: read, split, encode, write; built once, whoever asks."""

import hashlib
import json
from collections.abc import Iterable, Iterator
from dataclasses import replace
from hashlib import blake2b
from pathlib import Path

from tokenizers import Tokenizer

from configs.errors import BadInput
from configs.schema import CorpusSettings, DataSettings, TokenizerSettings
from data_prep.corpus import Document, corpus_files, read_documents
from data_prep.manifest import (
    FORMAT_VERSION,
    MANIFEST_FILE,
    FileRecord,
    Manifest,
    Split,
    SplitCounts,
    file_checksum,
    file_record,
    read_manifest,
    shard_folder,
    write_manifest,
)
from data_prep.once import build_once
from data_prep.shards import ShardWriter, TokenStream, open_shard, token_dtype
from data_prep.tokenizer import TOKENIZER_FILE, encode_documents, load_tokenizer, save_tokenizer, train_tokenizer

BATCH_DOCUMENTS = 1000
BATCH_CHARACTERS = 2_000_000


def is_held_out(text: str, share: float) -> bool:
    """Whether a document belongs to the held-out part: a function of its text alone, so that growing the
    corpus moves no document from one side to the other."""
    position = int.from_bytes(blake2b(text.encode(), digest_size=8, person=b"held-out").digest(), "big")
    return position < share * 2**64


def prepare_tokenizer(corpus: CorpusSettings, settings: TokenizerSettings, folder: Path, show_progress: bool) -> Path:
    """Return the folder of the run's tokenizer, trained into `folder` once unless `settings.path` names one."""
    if settings.path is not None:
        path = Path(settings.path)
        load_tokenizer(path)
        return path

    def build(temporary: Path) -> None:
        documents = read_documents(corpus_files(corpus), corpus)
        tokenizer = train_tokenizer((document.text for document in documents), settings, show_progress)
        save_tokenizer(tokenizer, temporary)

    return build_once(folder, TOKENIZER_FILE, build)


def shard_fingerprint(sources: Iterable[FileRecord], tokenizer: str, settings: dict[str, str | int | float]) -> str:
    """128 bits over everything that decides the shards' bytes: sources' content, tokenizer, settings, format."""
    parts = [FORMAT_VERSION, [[s.bytes, s.blake2b] for s in sources], tokenizer, settings]
    return hashlib.blake2b(json.dumps(parts, sort_keys=True).encode(), digest_size=16).hexdigest()


def prepare_shards(corpus: CorpusSettings, data: DataSettings, tokenizer_folder: Path, out: Path) -> Path:
    """Return the shard folder `out/FINGERPRINT`, built unless it is there.

    Raises:
        BadInput: the corpus, the tokenizer or `out` is not usable.
    """
    if not 0 <= data.held_out < 1:
        raise BadInput(f"data.held_out {data.held_out} is no share of documents: choose 0 or more, and less than 1")
    tokenizer = load_tokenizer(tokenizer_folder)
    checksum = file_checksum(tokenizer_folder / TOKENIZER_FILE)
    files = corpus_files(corpus)
    try:
        sources = tuple(file_record(file, str(file)) for file in files)
    except OSError as error:
        raise BadInput(f"{error.filename}: cannot be read ({error.strerror})") from error
    settings: dict[str, str | int | float] = {
        "text_field": corpus.text_field,
        "document": corpus.document,
        "held_out": data.held_out,
        "shard_tokens": data.shard_tokens,
    }
    fingerprint = shard_fingerprint(sources, checksum, settings)
    empty = Split((), SplitCounts(0, 0, 0, 0))
    manifest = Manifest(
        FORMAT_VERSION, fingerprint, checksum, tokenizer.get_vocab_size(), settings, sources, empty, empty, ()
    )

    def build(temporary: Path) -> None:
        write_shards(read_documents(files, corpus), tokenizer, data, manifest, temporary)

    return build_once(out / fingerprint, MANIFEST_FILE, build)


def write_shards(
    documents: Iterator[Document], tokenizer: Tokenizer, data: DataSettings, manifest: Manifest, folder: Path
) -> None:
    """Write both splits' shards and, last, `manifest` with their counts and checksums, into `folder`.

    Raises:
        BadInput: there is no document.
    """
    dtype = token_dtype(manifest.vocab_size)
    writers = {name: ShardWriter(folder, name, dtype, data.shard_tokens) for name in ("train", "held_out")}
    counts = dict.fromkeys(writers, SplitCounts(0, 0, 0, 0))
    for texts in _batches(documents):
        for text, ids in zip(texts, encode_documents(tokenizer, texts), strict=True):
            name = "held_out" if is_held_out(text, data.held_out) else "train"
            writers[name].add(ids)
            before = counts[name]
            counts[name] = SplitCounts(
                before.documents + 1,
                before.tokens + len(ids),
                before.bytes + len(text.encode()),
                before.characters + len(text),
            )
    if not any(split.documents for split in counts.values()):
        raise BadInput("the corpus holds no document: every file is empty or blank")
    for writer in writers.values():
        writer.close()
    train, held_out = (Split(tuple(writers[name].stems), counts[name]) for name in ("train", "held_out"))
    written = tuple(file_record(file) for file in sorted(folder.iterdir()))
    write_manifest(replace(manifest, train=train, held_out=held_out, files=written), folder)


def _batches(documents: Iterator[Document]) -> Iterator[list[str]]:
    texts: list[str] = []
    characters = 0
    for document in documents:
        texts.append(document.text)
        characters += len(document.text)
        if len(texts) >= BATCH_DOCUMENTS or characters >= BATCH_CHARACTERS:
            yield texts
            texts, characters = [], 0
    if texts:
        yield texts


def open_split(path: Path, name: str) -> TokenStream:
    """The tokens of the split `train` or `held_out` of a shard folder.

    Raises:
        BadInput: the folder is not whole.
    """
    folder = shard_folder(path)
    manifest = read_manifest(folder)
    split: Split = getattr(manifest, name)
    stream = TokenStream([open_shard(folder / stem) for stem in split.stems])
    if len(stream) != split.counts.tokens:
        raise BadInput(f"{folder}: {len(stream)} tokens in {name}, the manifest tells of {split.counts.tokens}")
    return stream
