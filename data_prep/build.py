"""From files to a shard folder: read, encode in parallel, write in order; built once, whoever asks."""

from pathlib import Path

from configs.errors import BadInput
from configs.schema import CorpusSettings, ShardSettings, TokenizerSettings, VocabularySettings
from data_prep.commits import has_commit
from data_prep.corpus import read_documents
from data_prep.encode import check_tokenizer, tokenizer_checksum, vocabulary_size
from data_prep.fingerprint import SourceRecord, fingerprint, source_records, stamps_of
from data_prep.heartbeat import Heartbeat
from data_prep.manifest import (
    FORMAT_VERSION,
    MANIFEST_FILE,
    Manifest,
    Setting,
    Split,
    SplitCounts,
    read_manifest,
    shard_folder,
)
from data_prep.nodes import may_build, this_node
from data_prep.once import build_once
from data_prep.shards import TokenStream, open_shard
from data_prep.sources import corpus_files
from data_prep.tokenizer import TOKENIZER_FILE, save_tokenizer, train_tokenizer
from data_prep.verify import require_whole
from data_prep.writing import check_skipped, write_shards

SMALLEST_LONGEST_DOCUMENT = 1024


def prepare_tokenizer(corpus: CorpusSettings, settings: TokenizerSettings, folder: Path, show_progress: bool) -> Path:
    """Return the folder of the run's tokenizer, trained into `folder` once unless `settings.path` names one.

    Raises:
        BadInput: the corpus, or the tokenizer that `settings.path` names, is not usable.
    """
    if settings.path is not None:
        path = Path(settings.path)
        check_tokenizer(path)
        return path
    return build_tokenizer(corpus, settings, folder, show_progress)


def build_tokenizer(corpus: CorpusSettings, settings: VocabularySettings, folder: Path, show_progress: bool) -> Path:
    """Return `folder`, with a tokenizer trained into it once.

    Raises:
        BadInput: the corpus is not usable.
    """

    def build(temporary: Path, _: Heartbeat) -> None:
        documents = read_documents(corpus_files(corpus), corpus)
        tokenizer = train_tokenizer((document.text for document in documents), settings, show_progress)
        save_tokenizer(tokenizer, temporary)

    return build_once(folder, TOKENIZER_FILE, build)


def prepare_shards(corpus: CorpusSettings, data: ShardSettings, tokenizer_folder: Path, out: Path) -> Path:
    """Return the shard folder `out/FINGERPRINT` of the whole corpus, built unless it is there.

    Its bytes depend on the files' content, the tokenizer and the settings, and on nothing else.

    Raises:
        BadInput: the corpus, the tokenizer or `out` is not usable, a file changes while it is read, or the disk is
            full.
        RuntimeError: a worker, or the process that this one waited for, died.
    """
    _check_settings(corpus, data)
    builds = may_build(out, data.shared_filesystem, this_node())
    files = corpus_files(corpus)
    stamps = stamps_of(files)
    sources = source_records(files, corpus, out)
    manifest = _planned_manifest(sources, corpus, data, tokenizer_folder)

    def build(temporary: Path, heartbeat: Heartbeat) -> None:
        write_shards(files, stamps, manifest, corpus, data, tokenizer_folder, temporary, heartbeat)

    folder = build_once(out / manifest.fingerprint, MANIFEST_FILE, build, takes_over=has_commit, may_build=builds)
    check_skipped(read_manifest(folder), corpus)
    return folder


def _check_settings(corpus: CorpusSettings, data: ShardSettings) -> None:
    if not 0 <= data.held_out < 1:
        raise BadInput(f"data.held_out {data.held_out} is no share of documents: choose 0 or more, and less than 1")
    if not data.shard_tokens >= 1:
        raise BadInput(f"data.shard_tokens {data.shard_tokens}: choose 1 or more; millions are usual")
    if corpus.longest_document < SMALLEST_LONGEST_DOCUMENT:
        raise BadInput(
            f"corpus.longest_document {corpus.longest_document} bytes: choose {SMALLEST_LONGEST_DOCUMENT} or more"
        )
    for name, share in (
        ("corpus.largest_skipped_share", corpus.largest_skipped_share),
        ("corpus.cleaning.near_duplicates", corpus.cleaning.near_duplicates),
        ("corpus.cleaning.hangul_share", corpus.cleaning.hangul_share),
    ):
        if not 0 <= share <= 1:
            raise BadInput(f"{name} {share}: choose a share from 0 to 1")


def _planned_manifest(
    sources: tuple[SourceRecord, ...], corpus: CorpusSettings, data: ShardSettings, tokenizer_folder: Path
) -> Manifest:
    """The manifest as far as it is known before a document is read."""
    checksum = tokenizer_checksum(tokenizer_folder)
    vocab_size = vocabulary_size(tokenizer_folder)
    cleaning = corpus.cleaning
    settings: dict[str, Setting] = {
        "corpus.text_field": corpus.text_field,
        "corpus.document": corpus.document,
        "corpus.normalise": corpus.normalise,
        "corpus.longest_document": corpus.longest_document,
        "corpus.cleaning.shortest": cleaning.shortest,
        "corpus.cleaning.longest": cleaning.longest,
        "corpus.cleaning.exact_duplicates": cleaning.exact_duplicates,
        "corpus.cleaning.near_duplicates": cleaning.near_duplicates,
        "corpus.cleaning.hangul_share": cleaning.hangul_share,
        "corpus.cleaning.repeated_lines": cleaning.repeated_lines,
        "corpus.cleaning.emails": cleaning.emails,
        "corpus.cleaning.resident_numbers": cleaning.resident_numbers,
        "data.held_out": data.held_out,
        "data.shard_tokens": data.shard_tokens,
    }
    name = fingerprint(sources, checksum, settings, FORMAT_VERSION)
    empty = Split((), SplitCounts(0, 0, 0, 0))
    return Manifest(FORMAT_VERSION, name, checksum, vocab_size, settings, sources, empty, empty, {}, {}, 0, ())


def open_split(path: Path, name: str, checksums: bool = False) -> TokenStream:
    """The tokens of the split `train` or `held_out` of a shard folder. Sizes are checked always.

    Args:
        checksums: check every byte too, which reads the folder through.

    Raises:
        BadInput: the folder is not whole.
    """
    folder = shard_folder(path)
    manifest = read_manifest(folder)
    split: Split = getattr(manifest, name)
    require_whole(folder, manifest, checksums)
    stream = TokenStream([open_shard(folder / stem) for stem in split.stems])
    if len(stream) != split.counts.tokens:
        raise BadInput(f"{folder}: {len(stream)} tokens in {name}, the manifest tells of {split.counts.tokens}")
    return stream
