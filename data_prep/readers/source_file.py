"""One file of the corpus and its bytes: local or remote, compressed or not."""

import bz2
import gzip
import io
import lzma
import sys
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Literal, TextIO, cast

from malmoi.configs.corpus import Encoding
from malmoi.data_prep.readers.korean_codecs import COMPOSING_CP949, euc_kr_stream
from malmoi.errors import UserError

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

Compression = Literal["none", "gz", "zst", "xz", "bz2"]

COMPRESSIONS: dict[str, Compression] = {".gz": "gz", ".zst": "zst", ".xz": "xz", ".bz2": "bz2"}

DAMAGE = (EOFError, zlib.error, gzip.BadGzipFile, lzma.LZMAError, zstd.ZstdError)
"""What a decompressor raises where its file is cut short or altered; bz2 raises a plain OSError without errno."""


@dataclass(frozen=True)
class SourceFile:
    """One file of the corpus."""

    name: str
    """Path or fsspec URL."""
    suffix: str
    """The suffix that tells the format, in lower case and without that of the compression: a key of `READERS`."""
    compression: Compression
    encoding: Encoding
    """How its text is encoded. `auto` only until `with_encoding` has read the file."""

    @property
    def is_local(self) -> bool:
        """Whether `name` is a path of this machine, rather than a URL."""
        return "://" not in self.name

    @property
    def path(self) -> Path:
        """The path of a local file."""
        return Path(self.name)

    @property
    def is_read_as_stored(self) -> bool:
        """Whether `open_bytes` gives the stored bytes themselves."""
        return self.compression == "none" and self.encoding != "iso-2022-kr"

    @property
    def codec(self) -> str:
        """Name of the codec that decodes what `open_bytes` gives."""
        match self.encoding:
            case "auto":
                return "utf-8"
            case "cp949" | "iso-2022-kr":
                return COMPOSING_CP949
            case _:
                return self.encoding


def open_raw(file: SourceFile) -> BinaryIO:
    """Open the bytes of `file` as they are stored."""
    if file.is_local:
        return file.path.open("rb")
    import fsspec  # late: most corpora are local, and it is slow to import

    return cast(BinaryIO, fsspec.open(file.name, "rb").open())


def open_bytes(file: SourceFile) -> BinaryIO:
    """Open the decompressed bytes of `file`; of ISO-2022-KR, where bytes mean nothing without those before, EUC-KR.

    Reading raises one of `DAMAGE`, or OSError, where the file is damaged.
    """
    stream = _decompressed(file)
    return euc_kr_stream(stream) if file.encoding == "iso-2022-kr" else stream


def _decompressed(file: SourceFile) -> BinaryIO:
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


def open_text(file: SourceFile, errors: str = "strict") -> TextIO:
    """Open the text of `file`, decompressed and decoded; line ends stay as they are.

    Args:
        errors: what Python's decoder does with bytes that are not of the encoding.
    """
    return io.TextIOWrapper(open_bytes(file), file.codec, errors=errors, newline="")


def size_of(file: SourceFile) -> int:
    """Return the bytes that `file` takes where it is stored."""
    if file.is_local:
        return file.path.stat().st_size
    import fsspec

    filesystem, path = fsspec.core.url_to_fs(file.name)
    return int(filesystem.size(path))


def changed_while_read(file: SourceFile) -> UserError:
    """Return the error for a file whose shards would hold parts of its old and of its new content."""
    return UserError(f"{file.name}: changed while it was read; leave it alone and run again")
