"""Whether a shard folder is complete and consistent. Findings, not exceptions: all of them at once."""

import re
from pathlib import Path
from typing import get_args

import numpy as np

from malmoi.checksums import Finding, file_findings
from malmoi.data_prep.shards.indexed_dataset import Shard, open_shard
from malmoi.data_prep.shards.manifest import MANIFEST_FILE, REMEDY, Split, SplitName, read_manifest, shard_folder
from malmoi.data_prep.tokenizer.encode import tokenizer_checksum
from malmoi.errors import UserError

DAMAGE = ("manifest", "missing", "size", "index", "counts")
"""Kinds of findings after which a folder cannot be read."""
SHARD_FILE = re.compile(r"\..*|(?:train|val)-\d+\.(?:bin|idx)|" + re.escape(MANIFEST_FILE))
"""Names of a shard folder's files, and hidden ones, which are the file system's."""


def verify_shards(folder: Path, checksums: bool = True, tokenizer: Path | None = None) -> tuple[Finding, ...]:
    """Return everything that is wrong with a shard folder; empty where it is valid.

    Kinds of finding beside those of `file_findings`: `manifest`, `unknown` (a file that is not in it), `index`,
    `counts` and `tokenizer`.

    Args:
        checksums: read every byte. Otherwise sizes and indexes alone are compared, in milliseconds.
        tokenizer: folder of the tokenizer that the shards must be made with.
    """
    try:
        manifest = read_manifest(folder)
    except UserError as error:
        return (Finding("manifest", folder / MANIFEST_FILE, str(error)),)
    findings = list(file_findings(folder, manifest.files, REMEDY, checksums))
    broken = {finding.file for finding in findings}
    known = {record.name for record in manifest.files} | {MANIFEST_FILE}
    for file in sorted(folder.iterdir()):
        if file.name not in known:
            findings.append(Finding("unknown", file, f"{file}: not in the manifest; delete it or prepare again"))
    for name in get_args(SplitName):
        findings += _split_findings(folder, name, manifest.split(name), broken, checksums)
    if tokenizer is not None and tokenizer_checksum(tokenizer) != manifest.tokenizer:
        message = f"{folder}: made with another tokenizer than {tokenizer}; prepare again, or name the right one"
        findings.append(Finding("tokenizer", folder / MANIFEST_FILE, message))
    return tuple(findings)


def shard_damage(folder: Path) -> str:
    """Return why a shard folder cannot be read, seen in milliseconds; empty where it can, and where there is none.

    Not every byte is compared: see `verify_shards`.

    Raises:
        UserError: it cannot be read, and holds files besides that no build has made.
    """
    if not folder.is_dir():
        return ""
    wrong = next((found.message for found in verify_shards(folder, checksums=False) if found.kind in DAMAGE), "")
    if wrong:
        require_only_shards(folder)
    return wrong


def require_only_shards(folder: Path) -> None:
    """Check that a damaged folder, which a build is to replace, holds nothing that no build has made.

    Raises:
        UserError: it does.
    """
    others = sorted(file.name for file in folder.iterdir() if not SHARD_FILE.fullmatch(file.name))
    if others:
        raise UserError(f"{folder}: damaged, and holds other files ({others[0]}); move these, or the folder, away")


def shard_errors(path: Path, tokenizer: Path | None = None) -> list[str]:
    """Return what is wrong with a shard folder, a line each; empty where it is valid. Every byte is read.

    Args:
        tokenizer: folder of the tokenizer that the shards must be made with.

    Raises:
        UserError: there is no shard folder at `path`.
    """
    return [finding.message for finding in verify_shards(shard_folder(path), checksums=True, tokenizer=tokenizer)]


def _split_findings(folder: Path, name: str, split: Split, broken: set[Path], checksums: bool) -> list[Finding]:
    """Compare the shards of a split with its counts; shards of broken files are left out."""
    findings, documents, tokens, are_complete = [], 0, 0, True
    for stem in split.stems:
        files = {folder / f"{stem}.bin", folder / f"{stem}.idx"}
        if files & broken:
            are_complete = False
            continue
        try:
            shard = open_shard(folder / stem)
        except UserError as error:
            findings.append(Finding("index", folder / f"{stem}.idx", str(error)))
            are_complete = False
            continue
        documents, tokens = documents + len(shard.lengths), tokens + len(shard.tokens)
        if checksums and not _is_consistent(shard):
            message = f"{folder / stem}.idx: lengths and offsets disagree; {REMEDY}"
            findings.append(Finding("index", folder / f"{stem}.idx", message))
    if are_complete and (documents, tokens) != (split.counts.documents, split.counts.tokens):
        message = (
            f"{folder}: {name} holds {documents} documents and {tokens} tokens, the manifest says "
            f"{split.counts.documents} and {split.counts.tokens}; prepare again"
        )
        findings.append(Finding("counts", folder / MANIFEST_FILE, message))
    return findings


def _is_consistent(shard: Shard) -> bool:
    ends = np.cumsum(shard.lengths, dtype=np.int64) * shard.tokens.dtype.itemsize
    return bool(np.array_equal(shard.offsets[1:], ends[:-1]) and (not len(ends) or shard.offsets[0] == 0))
