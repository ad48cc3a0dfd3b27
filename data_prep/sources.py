"""Which files a corpus is: names, folders, globs, URLs and saved `datasets` in; files of known format out."""

import bz2
import glob
import gzip
import json
import logging
import lzma
import sys
import zlib
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import BinaryIO, Literal, cast

from configs.errors import BadInput
from configs.schema import CorpusSettings

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

Format = Literal["text", "jsonl", "json", "csv", "tsv", "parquet", "arrow"]
Compression = Literal["none", "gz", "zst", "xz", "bz2"]

PACKAGE_PREFIX = "package:"
FORMATS: dict[str, Format] = {
    ".txt": "text",
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".json": "json",
    ".csv": "csv",
    ".tsv": "tsv",
    ".parquet": "parquet",
    ".arrow": "arrow",
}
COMPRESSIONS: dict[str, Compression] = {".gz": "gz", ".zst": "zst", ".xz": "xz", ".bz2": "bz2"}
READABLE = ".txt, .jsonl, .ndjson, .json, .csv, .tsv, .parquet or .arrow, plain or .gz, .zst, .xz, .bz2"

OUTPUTS = (
    ("manifest.json", "train-00000.idx"),
    ("manifest.json", "held_out-00000.idx"),
    ("tokenizer.json", "tokenizer_config.json"),
    ("config.yaml", "environment.json"),
)
"""Files that lie side by side in a folder of shards, of a tokenizer or model, or of a run, and in no folder of text."""

DAMAGE = (EOFError, zlib.error, gzip.BadGzipFile, lzma.LZMAError, zstd.ZstdError)
"""What a decompressor raises where its file is cut short or altered; bz2 raises a plain OSError without errno."""


log = logging.getLogger(__name__)


@dataclass(frozen=True)
class SourceFile:
    """One file of the corpus."""

    name: str
    """Path or fsspec URL."""
    format: Format
    compression: Compression

    @property
    def is_local(self) -> bool:
        """Whether `name` is a path of this machine, rather than a URL."""
        return "://" not in self.name

    @property
    def path(self) -> Path:
        """The path of a local file."""
        return Path(self.name)


def source_file(name: str) -> SourceFile:
    """The file called `name`, its format and compression told by the suffixes.

    Raises:
        BadInput: there is no reader for the suffix.
    """
    suffixes = [suffix.lower() for suffix in PurePosixPath(name).suffixes]
    compression = COMPRESSIONS.get(suffixes[-1], "none") if suffixes else "none"
    if compression != "none":
        suffixes.pop()
    if not suffixes or suffixes[-1] not in FORMATS:
        raise BadInput(f"{name}: no reader for this format; use {READABLE}")
    return SourceFile(name, FORMATS[suffixes[-1]], compression)


def corpus_files(settings: CorpusSettings) -> list[SourceFile]:
    """The files that `settings.input` or its sources name, sorted within a folder or glob, each once.

    Raises:
        BadInput: nothing is named, a path does not exist, or a format has no reader.
    """
    if settings.input and settings.sources:
        raise BadInput("corpus.input and corpus.sources are both set; keep one of them")
    names = [*settings.input, *(name for source in settings.sources for name in source.input)]
    if not names:
        raise BadInput(f"corpus.input is empty: name files, folders, globs or URLs of {READABLE}")
    files: dict[str, SourceFile] = {}
    for name in names:
        for file in _remote_files(name) if "://" in name else _local_files(name):
            files[file.name] = file
    return list(files.values())


def _local_files(name: str) -> list[SourceFile]:
    if name.startswith(PACKAGE_PREFIX):
        path = Path(__file__).parent.parent / name.removeprefix(PACKAGE_PREFIX)
    else:
        path = Path(name).expanduser()
    if path.is_dir():
        found = (file for file in path.rglob("*") if file.is_file())
        # Hidden files are no text: editors keep theirs so, and so does a build whose output lies in this folder.
        shown = (file for file in found if not any(part.startswith(".") for part in file.relative_to(path).parts))
        return _files_of_folder(str(path), sorted(map(str, shown)))
    if path.exists():
        return [source_file(str(path))]
    matches = glob.glob(str(path), recursive=True)  # noqa: PTH207 - Path.glob takes no absolute pattern
    return _matches(name, sorted(file for file in matches if Path(file).is_file()))


def _remote_files(url: str) -> list[SourceFile]:
    import fsspec

    try:
        filesystem, path = fsspec.core.url_to_fs(url)
        if filesystem.isdir(path):
            found = sorted(filesystem.unstrip_protocol(file) for file in filesystem.find(path))
            return _files_of_folder(url.rstrip("/"), found)
        if filesystem.exists(path):
            return [source_file(url)]
        return _matches(
            url, sorted(filesystem.unstrip_protocol(f) for f in filesystem.glob(path) if filesystem.isfile(f))
        )
    except (ImportError, ValueError, OSError) as error:
        raise BadInput(f"{url}: cannot be opened ({error}); check the URL and install its fsspec backend") from error


def _matches(name: str, found: list[str]) -> list[SourceFile]:
    if not any(sign in name for sign in "*?["):
        raise BadInput(f"{name}: no such file or folder; name one that holds text")
    if not found:
        raise BadInput(f"{name}: no file matches; quote the pattern and check it with ls")
    return [source_file(file) for file in found]


def _files_of_folder(folder: str, names: list[str]) -> list[SourceFile]:
    """The readable files among `names`; of folders that `datasets` saved, the data files that they list.

    Folders below `folder` that hold shards, a tokenizer or a run are left out: output may lie in the input.
    """
    names = _without_outputs(folder, names)
    parents = {name: name.rpartition("/")[0] for name in names}
    states = {parents[name] for name in names if name.endswith("/state.json")}
    saved = {parents[name] for name in names if name.endswith("/dataset_info.json")} & states
    if f"{folder}/dataset_dict.json" in names and len(saved) > 1:
        splits = ", ".join(sorted(split.rpartition("/")[2] for split in saved))
        raise BadInput(f"{folder}: saved with several splits ({splits}); name the folders of those to be read")
    listed = {f"{part}/{file}" for part in saved for file in _saved_data_files(f"{part}/state.json")}
    files = [
        source_file(name)
        for name in names
        if (name in listed if parents[name] in saved else _is_readable(name) and not name.endswith("dataset_dict.json"))
    ]
    if not files:
        raise BadInput(f"{folder}: no file to be read in this folder; use {READABLE}")
    return files


def _without_outputs(folder: str, names: list[str]) -> list[str]:
    inside: dict[str, set[str]] = {}
    for name in names:
        parent, _, last = name.rpartition("/")
        inside.setdefault(parent, set()).add(last)
    outputs = {parent for parent, found in inside.items() if parent != folder and any(map(found.issuperset, OUTPUTS))}
    for output in sorted(output for output in outputs if not _is_below(output, outputs)):
        log.info("passed over %s: it holds shards, a tokenizer or a run; name it to read it as text", output)
    return [name for name in names if not _is_below(name, outputs)]


def _is_below(name: str, folders: set[str]) -> bool:
    parent = name.rpartition("/")[0]
    while parent and parent not in folders:
        parent = parent.rpartition("/")[0]
    return bool(parent)


def _saved_data_files(state_file: str) -> list[str]:
    import fsspec

    try:
        with fsspec.open(state_file, "rb") as stream:
            return [entry["filename"] for entry in json.load(stream)["_data_files"]]
    except (ValueError, KeyError, TypeError) as error:
        raise BadInput(f"{state_file}: not as `datasets` writes it ({error!r}); save the dataset again") from error


def _is_readable(name: str) -> bool:
    try:
        source_file(name)
    except BadInput:
        return False
    return True


def open_raw(file: SourceFile) -> BinaryIO:
    """Open the bytes of `file` as they are stored."""
    if file.is_local:
        return file.path.open("rb")
    import fsspec  # late: most corpora are local, and it is slow to import

    return cast(BinaryIO, fsspec.open(file.name, "rb").open())


def open_bytes(file: SourceFile) -> BinaryIO:
    """Open the decompressed bytes of `file`. Reading raises one of `DAMAGE`, or OSError, where it is not whole."""
    raw = open_raw(file)
    match file.compression:
        case "gz":
            return cast(BinaryIO, gzip.GzipFile(fileobj=raw))
        case "bz2":
            return cast(BinaryIO, bz2.BZ2File(raw))
        case "xz":
            return cast(BinaryIO, lzma.LZMAFile(raw))
        case "zst":
            return cast(BinaryIO, zstd.ZstdFile(raw))
        case "none":
            return raw


def size_of(file: SourceFile) -> int:
    """Bytes that `file` takes where it is stored."""
    if file.is_local:
        return file.path.stat().st_size
    import fsspec

    filesystem, path = fsspec.core.url_to_fs(file.name)
    return int(filesystem.size(path))


def changed_while_read(file: SourceFile) -> BadInput:
    """The error for a file whose shards would be neither of what it was nor of what it is."""
    return BadInput(f"{file.name}: changed while it was read; leave it alone and run again")
