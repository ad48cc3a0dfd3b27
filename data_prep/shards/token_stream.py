"""The splits of a shard folder, opened for reading: the tokens of several shards as one array."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from malmoi.checksums import file_findings
from malmoi.data_prep.shards.indexed_dataset import Shard, open_shard
from malmoi.data_prep.shards.manifest import REMEDY, Split, SplitName, read_manifest, shard_folder
from malmoi.errors import UserError


class TokenStream:
    """The tokens of several shards, end to end, addressed as one array."""

    def __init__(self, shards: Sequence[Shard]) -> None:
        self.shards = tuple(shards)
        self._starts = np.cumsum([0, *(len(shard.tokens) for shard in self.shards)], dtype=np.int64)

    def __len__(self) -> int:
        return int(self._starts[-1])

    def read_into(self, start: int, out: NDArray[np.int64]) -> None:
        """Fill `out` with the tokens from `start` on, over shard boundaries where need be.

        Raises:
            IndexError: the range leaves the stream.
            UserError: a shard was cut since it was opened.
        """
        if start < 0 or start + len(out) > len(self):
            raise IndexError(f"tokens {start} to {start + len(out)} of a stream of {len(self)}")
        filled = 0
        number = int(np.searchsorted(self._starts, start, side="right")) - 1
        while filled < len(out):
            self.shards[number].require_complete()
            offset = start + filled - int(self._starts[number])
            piece = self.shards[number].tokens[offset : offset + len(out) - filled]
            out[filled : filled + len(piece)] = piece
            filled += len(piece)
            number += 1


def open_shards(folder: Path, split: Split) -> list[Shard]:
    """Return the shards of a split of `folder`, open, in order.

    Raises:
        UserError: see `open_shard`.
    """
    return [open_shard(folder / stem) for stem in split.stems]


def open_split(path: Path, name: SplitName, checksums: bool = False) -> TokenStream:
    """Return the tokens of a split of the shard folder at, or in, `path`. The sizes of all its files are checked.

    Args:
        checksums: check every byte too, which reads the folder through.

    Raises:
        UserError: the folder is not complete.
    """
    folder = shard_folder(path)
    manifest = read_manifest(folder)
    for finding in file_findings(folder, manifest.files, REMEDY, checksums):
        raise UserError(finding.message)
    split = manifest.split(name)
    stream = TokenStream(open_shards(folder, split))
    if len(stream) != split.counts.tokens:
        raise UserError(
            f"{folder}: {len(stream)} tokens in {name}, its manifest says {split.counts.tokens}; prepare again"
        )
    return stream
