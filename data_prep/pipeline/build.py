"""From files to a tokenizer, and from files to a shard folder; each built once, whoever asks."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from tokenizers import Tokenizer

from malmoi.atomic_io import write_atomic
from malmoi.checked_json import checked_json, parse_checked_json
from malmoi.checksums import FileRecord, file_findings, file_record
from malmoi.configs.corpus import CleaningSettings, CorpusSettings, VocabularySettings
from malmoi.configs.data import ShardSettings
from malmoi.data_prep.filters.decontamination import evaluation_runs
from malmoi.data_prep.pipeline.build_once import build_once
from malmoi.data_prep.pipeline.corpus import read_documents
from malmoi.data_prep.pipeline.encode_chunk import EncodeJob
from malmoi.data_prep.pipeline.encode_corpus import write_shards
from malmoi.data_prep.pipeline.fingerprint import (
    fingerprint,
    reader_settings,
    require_unchanged,
    source_records,
    stamps_of,
)
from malmoi.data_prep.pipeline.heartbeat import Heartbeat
from malmoi.data_prep.pipeline.nodes import may_build, this_node
from malmoi.data_prep.pipeline.resume_state import has_commit
from malmoi.data_prep.pipeline.verified_shards import damage_of_any_byte
from malmoi.data_prep.readers.source_file import SourceFile
from malmoi.data_prep.readers.sources import corpus_files, names_for_message
from malmoi.data_prep.shards.indexed_dataset import token_dtype
from malmoi.data_prep.shards.manifest import (
    FORMAT_VERSION,
    MANIFEST_FILE,
    Manifest,
    Setting,
    SourceRecord,
    Split,
    SplitCounts,
    check_skipped,
    read_manifest,
)
from malmoi.data_prep.tokenizer.encode import tokenizer_checksum, vocabulary_size
from malmoi.data_prep.tokenizer.train import TOKENIZER_FILE, save_tokenizer, train_tokenizer
from malmoi.errors import one_line
from malmoi.plugins import load_plugins

EVALUATION_TEXTS, EVALUATION_RUNS = "evaluation texts looked for", "evaluation runs"
"""What a manifest says of evaluation data, beside the settings: how many texts, and a checksum of their runs."""
TOKENIZER_MARKER = "made-of-"
"""Beginning of the name of a file in a tokenizer's folder that records the others; the rest of its name is a
fingerprint of corpus and settings."""


def build_tokenizer(corpus: CorpusSettings, settings: VocabularySettings, folder: Path, show_progress: bool) -> Path:
    """Return `folder`, with a tokenizer trained into it once.

    Raises:
        UserError: the corpus is not usable.
    """

    def build(temporary: Path, _: Heartbeat) -> None:
        save_tokenizer(_trained_tokenizer(corpus_files(corpus), corpus, settings, show_progress), temporary)

    return build_once(folder, TOKENIZER_FILE, build)


def _trained_tokenizer(
    files: Sequence[SourceFile], corpus: CorpusSettings, settings: VocabularySettings, show_progress: bool
) -> Tokenizer:
    texts = (document.text for document in read_documents(files, corpus))
    return train_tokenizer(texts, settings, show_progress, names_for_message([file.name for file in files]))


@dataclass(frozen=True)
class TokenizerBuild:
    """A tokenizer of this corpus and of these settings, which its folder records."""

    corpus: CorpusSettings
    settings: VocabularySettings
    files: tuple[SourceFile, ...]
    stamps: tuple[str, ...]
    """Of the files, before they were hashed."""
    sources: tuple[SourceRecord, ...]
    """Of the files' content."""
    fingerprint: str
    """128 bits over the content of the files and the settings."""

    @property
    def marker(self) -> str:
        """The file in the tokenizer's folder that says what it was made of."""
        return TOKENIZER_MARKER + self.fingerprint

    def into(self, folder: Path, show_progress: bool, may_build: bool = True) -> Path:
        """Return `folder`, with this tokenizer trained into it once; one that is damaged, or of another corpus or other
        settings, is replaced.

        Args:
            may_build: see `build_once`.

        Raises:
            UserError: the corpus is not usable, or changed meanwhile.
        """

        def build(temporary: Path, _: Heartbeat) -> None:
            tokenizer = _trained_tokenizer(self.files, self.corpus, self.settings, show_progress)
            require_unchanged(self.files, self.stamps, self.sources)
            save_tokenizer(tokenizer, temporary)
            files = [asdict(file_record(file)) for file in sorted(temporary.iterdir()) if file.is_file()]
            write_atomic(temporary / self.marker, checked_json({"files": files}))

        return build_once(folder, self.marker, build, may_build=may_build, damage=tokenizer_damage, replaces=True)


def tokenizer_build(corpus: CorpusSettings, settings: VocabularySettings, memory: Path) -> TokenizerBuild:
    """Return the tokenizer of a corpus and of settings, to be built.

    Args:
        memory: folder that remembers the hashes of files; only others are read.

    Raises:
        UserError: the corpus or `memory` is not usable.
    """
    files = corpus_files(corpus)
    stamps = stamps_of(files)
    sources = source_records(files, corpus, memory)
    files = [replace(file, encoding=source.encoding) for file, source in zip(files, sources, strict=True)]
    names = ("vocab_size", "sample_bytes", "min_character_count")
    vocabulary: dict[str, Setting] = {f"tokenizer.{name}": getattr(settings, name) for name in names}
    decisive = {**text_settings(corpus), **vocabulary, **reader_settings(files)}
    return TokenizerBuild(corpus, settings, tuple(files), stamps, sources, fingerprint(sources, "", decisive))


def records_its_corpus(tokenizer: Path) -> bool:
    """Return whether the tokenizer in a folder says what it was made of."""
    return any(tokenizer.glob(f"{TOKENIZER_MARKER}*"))


def tokenizer_damage(tokenizer: Path) -> str:
    """Return what is wrong with a tokenizer that a run has trained; empty where nothing is, or its files have no
    record."""
    for marker in sorted(tokenizer.glob(f"{TOKENIZER_MARKER}*")):
        try:
            # Older versions left it empty.
            content = marker.read_bytes()
            files = [FileRecord(**record) for record in parse_checked_json(content)["files"]] if content else []
        except (OSError, ValueError, KeyError, TypeError) as error:
            return f"{marker}: damaged ({one_line(error)})"
        wrong = next(file_findings(tokenizer, files, "it is no longer the run's"), None)
        if wrong is not None:
            return wrong.message
    return ""


def prepare_shards(
    corpus: CorpusSettings, data: ShardSettings, tokenizer_folder: Path, out: Path, plugins: tuple[str, ...] = ()
) -> Path:
    """Return the shard folder `out/FINGERPRINT` of the whole corpus, built unless it is there and complete.

    Its bytes depend on the files' content, their readers, the tokenizer and the settings, and on nothing else.

    Args:
        plugins: modules that register readers or executors; imported here and in every worker.

    Raises:
        UserError: the corpus, the tokenizer, a plugin or `out` is not usable, a file changes while it is read, or the
            disk is full.
        RunFailed: a worker, or the process that this one waited for, died.
    """
    load_plugins(plugins)
    builds = may_build(out, data.shared_filesystem, this_node())
    files = corpus_files(corpus)
    stamps = stamps_of(files)
    sources = source_records(files, corpus, out)
    files = [replace(file, encoding=source.encoding) for file, source in zip(files, sources, strict=True)]
    settings = {**byte_settings(corpus, data), **reader_settings(files)}
    leaks = evaluation_settings(corpus.cleaning)
    settings |= leaks
    manifest = _planned_manifest(sources, settings, tokenizer_folder)
    job = EncodeJob(
        corpus,
        str(tokenizer_folder),
        manifest.tokenizer,
        token_dtype(manifest.vocab_size).str,
        data.val_fraction,
        plugins,
        plugin_folder=str(Path.cwd()) if plugins else "",
        evaluation_runs=str(leaks.get(EVALUATION_RUNS, "")),
    )

    def build(temporary: Path, heartbeat: Heartbeat) -> None:
        write_shards(files, stamps, manifest, job, data, temporary, heartbeat)

    folder = build_once(
        out / manifest.fingerprint,
        MANIFEST_FILE,
        build,
        can_resume=has_commit,
        may_build=builds,
        damage=damage_of_any_byte,
    )
    check_skipped(read_manifest(folder), corpus)
    return folder


def byte_settings(corpus: CorpusSettings, data: ShardSettings) -> dict[str, Setting]:
    """Return the settings that decide the shards' bytes, by dotted name."""
    return {
        **text_settings(corpus),
        "data.val_fraction": data.val_fraction,
        "data.shard_tokens": data.shard_tokens,
    }


def text_settings(corpus: CorpusSettings) -> dict[str, Setting]:
    """Return the settings that decide which documents are in files, and their text, by dotted name."""
    return {
        "corpus.text_field": corpus.text_field,
        "corpus.document": corpus.document,
        "corpus.normalize": corpus.normalize,
        "corpus.quotes": corpus.quotes,
        "corpus.max_document_bytes": corpus.max_document_bytes,
        **{
            f"corpus.cleaning.{name}": value
            for name, value in asdict(corpus.cleaning).items()
            if not name.startswith("decontaminate")
        },
    }


def evaluation_settings(cleaning: CleaningSettings) -> dict[str, Setting]:
    """Return what decides which documents hold evaluation data: nothing where none is named.

    Raises:
        UserError: the evaluation data cannot be read.
    """
    if not cleaning.decontaminate:
        return {}
    runs = evaluation_runs(cleaning.decontaminate, cleaning.decontaminate_run)
    return {
        "corpus.cleaning.decontaminate": ", ".join(cleaning.decontaminate),
        "corpus.cleaning.decontaminate_run": cleaning.decontaminate_run,
        "corpus.cleaning.decontaminate_action": cleaning.decontaminate_action,
        EVALUATION_TEXTS: runs.texts,
        EVALUATION_RUNS: runs.checksum,
    }


def _planned_manifest(
    sources: tuple[SourceRecord, ...], settings: dict[str, Setting], tokenizer_folder: Path
) -> Manifest:
    """Return the manifest as far as it is known before a document is read."""
    tokenizer = tokenizer_checksum(tokenizer_folder)
    name = fingerprint(sources, tokenizer, settings)
    empty = Split((), SplitCounts(0, 0, 0, 0))
    vocab_size = vocabulary_size(tokenizer_folder)
    return Manifest(FORMAT_VERSION, name, tokenizer, vocab_size, settings, sources, empty, empty, {}, {}, 0, ())
