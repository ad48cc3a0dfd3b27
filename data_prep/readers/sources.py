"""The files of a corpus: names, folders, globs, URLs and saved `datasets` in; files of known format out."""

import glob
import json
import logging
from pathlib import Path, PurePosixPath

from malmoi.configs.corpus import CorpusSettings, Encoding
from malmoi.data_prep.readers import READERS
from malmoi.data_prep.readers.source_file import COMPRESSIONS, Compression, SourceFile
from malmoi.errors import UserError

PACKAGE_PREFIX = "package:"
PACKAGE = Path(__file__).parents[2]
OUTPUTS = (
    ("manifest.json", "train-00000.idx"),
    ("manifest.json", "val-00000.idx"),
    ("tokenizer.json", "tokenizer_config.json"),
    ("config.yaml", "environment.json"),
)
"""Files that are together in a folder of shards, of a tokenizer or model, or of a run, and in no folder of text."""

log = logging.getLogger(__name__)


def readable_suffixes() -> str:
    """Return the suffixes of files that can be read, for messages."""
    *others, last = READERS
    return f"{', '.join(others)} or {last}, plain or {', '.join(COMPRESSIONS)}"


def source_file(name: str, encoding: Encoding) -> SourceFile:
    """Return the file called `name`, its format and compression by its suffixes.

    Raises:
        UserError: there is no reader for the suffix.
    """
    suffix, compression = _suffix_of(name)
    if suffix not in READERS:
        raise UserError(
            f"{name}: no reader for this format; use {readable_suffixes()}; a plugin named in `plugins` can register "
            "others"
        )
    return SourceFile(name, suffix, compression, encoding)


def _suffix_of(name: str) -> tuple[str, Compression]:
    """Return the suffix that tells the format of a file, empty where there is none, and its compression."""
    suffixes = [suffix.lower() for suffix in PurePosixPath(name).suffixes]
    compression = COMPRESSIONS.get(suffixes[-1], "none") if suffixes else "none"
    if compression != "none":
        suffixes.pop()
    return suffixes[-1] if suffixes else "", compression


def corpus_files(settings: CorpusSettings) -> list[SourceFile]:
    """Return the files that `settings.input` or its sources name, sorted within a folder or glob, each once.

    Raises:
        UserError: nothing is named, a path does not exist, or a format has no reader.
    """
    if settings.input and settings.sources:
        raise UserError("corpus.input and corpus.sources are both set; keep one of them")
    names = [*settings.input, *(name for source in settings.sources for name in source.input)]
    if not names:
        raise UserError(f"corpus.input is empty: name files, folders, globs or URLs of {readable_suffixes()}")
    files: dict[str, SourceFile] = {}
    for name in names:
        for found in _remote_files(name) if "://" in name else _local_files(name):
            files[found] = source_file(found, settings.encoding)
    return list(files.values())


def _local_files(name: str) -> list[str]:
    own = name.startswith(PACKAGE_PREFIX)
    path = PACKAGE / name.removeprefix(PACKAGE_PREFIX) if own else Path(name).expanduser()
    if path.is_dir():
        found = (file for file in path.rglob("*") if file.is_file())
        # Hidden files are no text: editors keep theirs so, and so does a build whose output is in this folder.
        shown = (file for file in found if not any(part.startswith(".") for part in file.relative_to(path).parts))
        return _files_of_folder(str(path), sorted(map(str, shown)))
    if path.exists():
        return [str(path)]
    matches = glob.glob(str(path), recursive=True)  # noqa: PTH207 - Path.glob takes no absolute pattern
    return _matches(name, sorted(file for file in matches if Path(file).is_file()))


def _remote_files(url: str) -> list[str]:
    import fsspec

    try:
        filesystem, path = fsspec.core.url_to_fs(url)
        if filesystem.isdir(path):
            found = sorted(filesystem.unstrip_protocol(file) for file in filesystem.find(path))
            return _files_of_folder(url.rstrip("/"), found)
        if filesystem.exists(path):
            return [url]
        return _matches(
            url, sorted(filesystem.unstrip_protocol(f) for f in filesystem.glob(path) if filesystem.isfile(f))
        )
    except (ImportError, ValueError, OSError) as error:
        raise UserError(f"{url}: cannot be opened ({error}); check the URL and install its fsspec backend") from error


def _matches(name: str, found: list[str]) -> list[str]:
    if not any(sign in name for sign in "*?["):
        raise UserError(f"{name}: no such file or folder; name one that holds text")
    if not found:
        raise UserError(f"{name}: no file matches; quote the pattern and check it with ls")
    return found


def _files_of_folder(folder: str, names: list[str]) -> list[str]:
    """Return the readable files among `names`; of folders that `datasets` saved, the data files that they list.

    Folders below `folder` that hold shards, a tokenizer or a run are left out: output may be inside the input.
    """
    names = _without_outputs(folder, names)
    parents = {name: name.rpartition("/")[0] for name in names}
    states = {parents[name] for name in names if name.endswith("/state.json")}
    saved = {parents[name] for name in names if name.endswith("/dataset_info.json")} & states
    if f"{folder}/dataset_dict.json" in names and len(saved) > 1:
        splits = ", ".join(sorted(split.rpartition("/")[2] for split in saved))
        raise UserError(f"{folder}: saved with several splits ({splits}); name the folders of those to be read")
    listed = {f"{part}/{file}" for part in saved for file in _saved_data_files(f"{part}/state.json")}
    files = [
        name
        for name in names
        if (
            name in listed
            if parents[name] in saved
            else _suffix_of(name)[0] in READERS and not name.endswith("dataset_dict.json")
        )
    ]
    if not files:
        raise UserError(f"{folder}: no file to be read in this folder; use {readable_suffixes()}")
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
        raise UserError(f"{state_file}: not as `datasets` writes it ({error!r}); save the dataset again") from error
