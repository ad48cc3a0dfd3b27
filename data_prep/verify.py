"""Is a shard folder whole? Findings, not exceptions: all of them, so that one look tells everything."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from configs.errors import BadInput
from data_prep.encode import tokenizer_checksum
from data_prep.manifest import MANIFEST_FILE, FileRecord, Manifest, Split, file_checksum, read_manifest, shard_folder
from data_prep.shards import Shard, open_shard

Kind = Literal["manifest", "missing", "size", "checksum", "index", "counts", "unknown", "tokenizer"]


@dataclass(frozen=True)
class Finding:
    """One thing that is wrong with a shard folder."""

    kind: Kind
    file: Path
    message: str
    """One line: the file, what is wrong, what to do."""


def verify_shards(folder: Path, checksums: bool = True, tokenizer: Path | None = None) -> tuple[Finding, ...]:
    """Everything that is wrong with a shard folder; empty where it is whole.

    Args:
        checksums: read every byte. Otherwise sizes and indexes alone are looked at, in milliseconds.
        tokenizer: folder of the tokenizer that the shards must be made with.
    """
    try:
        manifest = read_manifest(folder)
    except BadInput as error:
        return (Finding("manifest", folder / MANIFEST_FILE, str(error)),)
    findings = _files(folder, manifest, checksums)
    broken = {finding.file for finding in findings}
    for name, split in (("train", manifest.train), ("held_out", manifest.held_out)):
        findings += _split_findings(folder, name, split, broken, checksums)
    if tokenizer is not None and tokenizer_checksum(tokenizer) != manifest.tokenizer:
        message = f"{folder}: made with another tokenizer than {tokenizer}; prepare again, or name the right one"
        findings.append(Finding("tokenizer", folder / MANIFEST_FILE, message))
    return tuple(findings)


def shard_faults(path: Path, tokenizer: Path | None = None) -> list[str]:
    """What is wrong with a shard folder, a line each; empty where it is whole. Every byte is read.

    Raises:
        BadInput: there is no shard folder at `path`.
    """
    return [finding.message for finding in verify_shards(shard_folder(path), checksums=True, tokenizer=tokenizer)]


def file_faults(folder: Path, records: tuple[FileRecord, ...]) -> list[str]:
    """What is wrong with the files of any folder that kept records of them, a line each."""
    return [finding.message for finding in _recorded_files(folder, records, checksums=True)]


def require_whole(folder: Path, manifest: Manifest, checksums: bool) -> None:
    """See that every file of the manifest is there with its size, and its checksum where asked for.

    Raises:
        BadInput: one is not; the message is the first finding's.
    """
    for finding in _recorded_files(folder, manifest.files, checksums):
        raise BadInput(finding.message)


def _files(folder: Path, manifest: Manifest, checksums: bool) -> list[Finding]:
    findings = _recorded_files(folder, manifest.files, checksums)
    known = {record.name for record in manifest.files} | {MANIFEST_FILE}
    for file in sorted(folder.iterdir()):
        if file.name not in known:
            findings.append(Finding("unknown", file, f"{file}: not in the manifest; delete it or prepare again"))
    return findings


def _recorded_files(folder: Path, records: tuple[FileRecord, ...], checksums: bool) -> list[Finding]:
    findings = []
    for record in records:
        file = folder / record.name
        if not file.is_file():
            findings.append(Finding("missing", file, f"{file}: missing; delete the folder and make it again"))
        elif (size := file.stat().st_size) != record.bytes:
            message = f"{file}: {size} bytes, the manifest tells of {record.bytes}; delete the folder and make it again"
            findings.append(Finding("size", file, message))
        elif checksums and file_checksum(file) != record.blake2b:
            message = f"{file}: its content changed since it was written; delete the folder and make it again"
            findings.append(Finding("checksum", file, message))
    return findings


def _split_findings(folder: Path, name: str, split: Split, broken: set[Path], checksums: bool) -> list[Finding]:
    """Whether the shards of a split are what its counts tell; shards of broken files are left out."""
    findings, documents, tokens, are_whole = [], 0, 0, True
    for stem in split.stems:
        files = {folder / f"{stem}.bin", folder / f"{stem}.idx"}
        if files & broken:
            are_whole = False
            continue
        try:
            shard = open_shard(folder / stem)
        except BadInput as error:
            findings.append(Finding("index", folder / f"{stem}.idx", str(error)))
            are_whole = False
            continue
        documents, tokens = documents + len(shard.lengths), tokens + len(shard.tokens)
        if checksums and not _is_consistent(shard):
            message = f"{folder / stem}.idx: lengths and offsets disagree; delete the folder and prepare again"
            findings.append(Finding("index", folder / f"{stem}.idx", message))
    if are_whole and (documents, tokens) != (split.counts.documents, split.counts.tokens):
        message = (
            f"{folder}: {name} holds {documents} documents and {tokens} tokens, the manifest tells of "
            f"{split.counts.documents} and {split.counts.tokens}; prepare again"
        )
        findings.append(Finding("counts", folder / MANIFEST_FILE, message))
    return findings


def _is_consistent(shard: Shard) -> bool:
    ends = np.cumsum(shard.lengths, dtype=np.int64) * shard.tokens.dtype.itemsize
    return bool(np.array_equal(shard.offsets[1:], ends[:-1]) and (not len(ends) or shard.offsets[0] == 0))
