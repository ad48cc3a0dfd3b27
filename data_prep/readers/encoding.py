"""How the text of a file is encoded: as set, or UTF-8 or CP949, whichever it is valid as."""

import codecs
import logging
from dataclasses import replace

from malmoi.configs.corpus import CorpusSettings, Encoding
from malmoi.data_prep.readers import READERS
from malmoi.data_prep.readers.source_file import DAMAGE, SourceFile, open_bytes
from malmoi.errors import UserError

READ_BYTES = 1 << 20

log = logging.getLogger(__name__)


def with_encoding(file: SourceFile, settings: CorpusSettings) -> SourceFile:
    """Return `file` with its encoding: as set, as `auto` finds by reading it, or UTF-8 where its format says so.

    Raises:
        UserError: see `detect_encoding`.
    """
    if not READERS[file.suffix].is_text:
        return replace(file, encoding="utf-8")
    if settings.encoding != "auto":
        return replace(file, encoding=settings.encoding)
    encoding = detect_encoding(file, settings)
    log.info("%s: read as %s", file.name, encoding.upper())
    return replace(file, encoding=encoding)


def detect_encoding(file: SourceFile, settings: CorpusSettings) -> Encoding:
    """Return UTF-8 where the file decodes so from beginning to end, else CP949 where it does.

    Raises:
        UserError: neither, and `on_error` is stop. Where it is skip, the file is read as UTF-8.
    """
    decoders = {name: codecs.getincrementaldecoder(name)() for name in ("utf-8", "cp949")}
    failed: dict[str, int] = {}
    read = 0
    try:
        with open_bytes(file) as stream:
            while True:
                block = stream.read(READ_BYTES)
                for name in [name for name in decoders if name not in failed]:
                    try:
                        decoders[name].decode(block, final=not block)
                    except UnicodeDecodeError as error:
                        failed[name] = read + max(error.start, 0)
                if not block or len(failed) == len(decoders):
                    break
                read += len(block)
    except (*DAMAGE, OSError) as error:
        # The reader reports damage, with its place.
        if isinstance(error, OSError) and error.errno is not None:
            raise
    if "utf-8" not in failed:
        return "utf-8"
    if "cp949" not in failed:
        return "cp949"
    if settings.on_error == "skip":
        return "utf-8"
    places = ", ".join(f"{name.upper()} to byte {place}" for name, place in failed.items())
    raise UserError(
        f"{file.name}: neither UTF-8 nor CP949 from beginning to end ({places}); convert it, or set corpus.encoding "
        "and corpus.on_error skip"
    )
