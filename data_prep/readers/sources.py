"""The files of a corpus: names, folders, globs, URLs and saved `datasets` in; files of known format out."""

import fnmatch
import glob
import json
import logging
import os
from collections.abc import Sequence
from functools import cache
from pathlib import Path, PurePosixPath

from malmoi.configs.corpus import CorpusSettings, Encoding
from malmoi.data_prep.readers import READERS
from malmoi.data_prep.readers.folder_listing import NO_FILE, FolderListing, cannot_be_read, list_folder
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
NAMED_FILES = 3
"""Files that a message about all of them names."""
SIDECARS = (
    *("README*", "LICENSE*", "*.lock", "*~", "*.tmp", "*.md5", "*.sha256", "*.crc"),
    *("Thumbs.db", "desktop.ini", "_SUCCESS"),
)
"""Files that others keep beside theirs: descriptions, locks, copies, checksums, marks."""

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


def names_for_message(names: Sequence[str]) -> str:
    """Return names of files in one line: the first few, and how many more there are."""
    more = [f"{len(names) - NAMED_FILES:,} more"] if len(names) > NAMED_FILES else []
    return ", ".join([*names[:NAMED_FILES], *more])


def _local_files(name: str) -> list[str]:
    own = name.startswith(PACKAGE_PREFIX)
    path = PACKAGE / name.removeprefix(PACKAGE_PREFIX) if own else Path(name).expanduser()
    try:
        if path.is_dir():
            listing = list_folder(path)
            return _files_of_folder(str(path), list(listing.files), listing)
        if path.exists():
            return [_regular(path)]
        return _matches(name, _files_of_pattern(str(path)))
    except OSError as error:
        raise UserError(f"{error.filename or path}: {cannot_be_read(error)}") from error


def _regular(path: Path) -> str:
    """Return the name of a file that reading comes to an end of.

    Raises:
        UserError: it is a pipe, a socket or a device.
    """
    if not path.is_file():
        raise UserError(f"{path}: {NO_FILE}")
    return str(path)


def _files_of_pattern(pattern: str) -> list[str]:
    """Return the files that match, sorted; of a pattern with `**`, those of linked folders too, each folder once.

    Raises:
        UserError: a folder in which more could match cannot be read, or a match is no regular file.
    """
    parts = Path(pattern).parts
    at = parts.index("**") if "**" in parts else len(parts)
    for length in range(1, min(at + 1, len(parts))):
        if any(map(glob.has_magic, parts[: length + 1])):
            for place in _matching(parts[:length]):
                if place.is_dir():
                    _require_listable(place)
    matches = _matching(parts[:at])
    if at < len(parts):
        return sorted({file for root in matches if root.is_dir() for file in _files_below(root, parts[at:])})
    folders = sorted(str(match) for match in matches if match.is_dir())
    if folders:
        log.warning("%s: folders that match are left out (%s); name them, or use **", pattern, _some(folders))
    return sorted(_regular(match) for match in matches if not match.is_dir())


def _require_listable(folder: Path) -> None:
    # Not os.access, which asks for the user who started the process, nor glob, which takes such a folder for empty.
    try:
        with os.scandir(folder):
            pass
    except OSError as error:
        raise UserError(f"{folder}: {cannot_be_read(error)}") from error


def _matching(parts: Sequence[str]) -> list[Path]:
    return [Path(match) for match in glob.glob(str(Path(*parts)))]  # noqa: PTH207 - Path.glob takes no absolute pattern


def _files_below(root: Path, pattern: Sequence[str]) -> list[str]:
    listing = list_folder(root)
    for place, wrong in sorted(listing.unreadable.items()):
        raise UserError(f"{place}: {wrong}")
    paths = map(Path, (*listing.files, *listing.special))
    return [_regular(path) for path in paths if _is_match(path.relative_to(root).parts, pattern)]


def _is_match(parts: Sequence[str], pattern: Sequence[str]) -> bool:
    """Return whether a relative path matches a pattern in which `**` stands for any number of folders."""
    if not pattern:
        return not parts
    first, rest = pattern[0], pattern[1:]
    if first == "**":
        return any(_is_match(parts[skipped:], rest) for skipped in range(len(parts) + 1))
    return bool(parts) and fnmatch.fnmatchcase(parts[0], first) and _is_match(parts[1:], rest)


def _some(names: Sequence[str]) -> str:
    """Return the first names and how many there are in all, for messages."""
    return ", ".join(names[:NAMED_FILES]) + (f" and {len(names) - NAMED_FILES} more" if names[NAMED_FILES:] else "")


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


def _files_of_folder(folder: str, names: list[str], listing: FolderListing | None = None) -> list[str]:
    """Return the readable files among `names`; of folders that `datasets` saved, the data files that they list.

    Folders below `folder` that hold shards, a tokenizer or a run are left out: output may be inside the input. Files of
    a format that nothing reads are named in the log.

    Args:
        listing: of a local folder, so that what is below it and cannot be read is refused.
    """
    outputs = _outputs_below(folder, names)
    names = [name for name in names if not _is_below(name, outputs)]
    if listing is not None:
        for place, wrong in sorted(listing.unreadable.items()):
            if not _is_below(place, outputs):
                raise UserError(f"{place}: {wrong}")
        special = [place for place in listing.special if not _is_below(place, outputs)]
        for place in filter(_is_of_format, special):
            raise UserError(f"{place}: {NO_FILE}")
        names += special
        for link in listing.linked_again:
            log.info("passed over %s: the folder that it links to is read under another name", link)
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
            name in listed if parents[name] in saved else _is_of_format(name) and not name.endswith("dataset_dict.json")
        )
    ]
    if not files:
        raise UserError(f"{folder}: no file to be read in this folder; use {readable_suffixes()}")
    others = [name for name in names if parents[name] not in saved]
    unread = sorted(name for name in others if not _is_of_format(name) and not _is_sidecar(name))
    if unread:
        _warn_of_unread(folder, len(unread), _some(unread))
    return files


def _is_of_format(name: str) -> bool:
    return _suffix_of(name)[0] in READERS


def _is_sidecar(name: str) -> bool:
    """Return whether a file belongs to others, or to a program, and never holds text: its absence needs no word."""
    last = name.rpartition("/")[2]
    return last.startswith(".") or any(fnmatch.fnmatchcase(last, pattern) for pattern in SIDECARS)


@cache  # once a process, though a run lists its corpus for the tokenizer and for the shards
def _warn_of_unread(folder: str, count: int, some: str) -> None:
    level = logging.WARNING if os.environ.get("RANK", "0") == "0" else logging.INFO
    what = "1 file" if count == 1 else f"{count:,} files"
    are = "is" if count == 1 else "are"
    log.log(level, "%s: %s of a format that is not read %s left out (%s)", folder, what, are, some)


def _outputs_below(folder: str, names: list[str]) -> set[str]:
    """Return the folders below `folder` that hold what Malmoi wrote."""
    inside: dict[str, set[str]] = {}
    for name in names:
        parent, _, last = name.rpartition("/")
        inside.setdefault(parent, set()).add(last)
    outputs = {parent for parent, found in inside.items() if parent != folder and any(map(found.issuperset, OUTPUTS))}
    for output in sorted(output for output in outputs if not _is_below(output, outputs)):
        log.info("passed over %s: it holds shards, a tokenizer or a run; name it to read it as text", output)
    return outputs


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
