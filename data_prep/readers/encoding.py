"""How the text of a file is encoded: as set, or ISO-2022-KR, UTF-8 or CP949, whichever it is valid as."""

import codecs
import logging
from dataclasses import replace

from malmoi.configs.corpus import CorpusSettings, Encoding
from malmoi.data_prep.readers import READERS
from malmoi.data_prep.readers.korean_codecs import KR_HEADER, SHIFT_OUT, Iso2022KrToEucKr
from malmoi.data_prep.readers.source_file import DAMAGE, SourceFile, open_bytes
from malmoi.errors import UserError

READ_BYTES = 1 << 20
HEADER_BYTES = 1 << 16
"""Bytes at the beginning of a file in which ISO-2022-KR announces itself."""

log = logging.getLogger(__name__)


def with_encoding(file: SourceFile, settings: CorpusSettings) -> SourceFile:
    """Return `file` with its encoding: as set, as `auto` finds by reading it, or UTF-8 where its format says so.

    Raises:
        UserError: see `detect_encoding`; or the file is ISO-2022-KR, which decodes as ASCII, and another is set.
    """
    if not READERS[file.suffix].is_text:
        return replace(file, encoding="utf-8")
    if settings.encoding == "iso-2022-kr":
        return replace(file, encoding="iso-2022-kr")
    is_kr = _is_iso_2022_kr(file)
    if settings.encoding == "auto":
        encoding = "iso-2022-kr" if is_kr else detect_encoding(file, settings)
        log.info("%s: read as %s", file.name, encoding.upper())
        return replace(file, encoding=encoding)
    if is_kr:
        raise UserError(f"{file.name}: is ISO-2022-KR; set corpus.encoding auto, or iso-2022-kr")
    return replace(file, encoding=settings.encoding)


def _is_iso_2022_kr(file: SourceFile) -> bool:
    """Return whether a file announces ISO-2022-KR, and is valid as that from beginning to end."""
    decoder, converter = codecs.getincrementaldecoder("cp949")(), Iso2022KrToEucKr()
    has_hangul = False
    try:
        with open_bytes(replace(file, encoding="auto")) as stream:
            block = stream.read(HEADER_BYTES)
            if KR_HEADER not in block:
                return False
            while block:
                has_hangul = has_hangul or SHIFT_OUT in block
                decoder.decode(converter.convert(block, final=False))
                block = stream.read(READ_BYTES)
        decoder.decode(converter.convert(b"", final=True), final=True)
    except UnicodeDecodeError:
        return False
    except (*DAMAGE, OSError) as error:
        # The reader reports damage, with its place.
        if isinstance(error, OSError) and error.errno is not None:
            raise
    return has_hangul


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
