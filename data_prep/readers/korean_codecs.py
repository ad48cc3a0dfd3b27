"""What Python's own codecs leave undone: CP949 with its syllables of eight bytes, and ISO-2022-KR.

KS X 1001 has 2,350 of 11,172 syllables; its annex 3 spells any other as a filler and three letters, two bytes each:
the initial consonant, the vowel, and the final consonant or another filler. Python composes these under `euc_kr` alone.
"""

import codecs
import io
import re
from typing import BinaryIO, cast

COMPOSING_CP949 = "cp949_composing"
"""Name of the codec that is CP949 and composes syllables of eight bytes."""
FILLER = "\u3164"
INITIALS = "ㄱㄲㄴㄷㄸㄹㅁㅂㅃㅅㅆㅇㅈㅉㅊㅋㅌㅍㅎ"
VOWELS = "ㅏㅐㅑㅒㅓㅔㅕㅖㅗㅘㅙㅚㅛㅜㅝㅞㅟㅠㅡㅢㅣ"
FINALS = f"{FILLER}ㄱㄲㄳㄴㄵㄶㄷㄹㄺㄻㄼㄽㄾㄿㅀㅁㅂㅄㅅㅆㅇㅈㅊㅋㅌㅍㅎ"
SPELLED = re.compile(f"{FILLER}([{INITIALS}])([{VOWELS}])([{FINALS}])")
BEGUN = re.compile(f"{FILLER}(?:[{INITIALS}][{VOWELS}]?)?\\Z")
"""The beginning of a spelled syllable, at the end of a text."""

KR_HEADER = b"\x1b$)C"
"""Announces ISO-2022-KR (RFC 1557), at the beginning of a line before the first Hangul."""
SHIFT_OUT = b"\x0e"
SHIFTS = re.compile(rb"([\x0e\x0f\r\n])")
INVALID = 0xFF
"""A byte that neither CP949 nor EUC-KR has."""
UNSHIFTED = bytes(byte if byte < 0x80 else INVALID for byte in range(256))
SHIFTED = bytes(byte | 0x80 if 0x20 < byte < 0x7F else UNSHIFTED[byte] for byte in range(256))
READ_BYTES = 1 << 16


def compose_syllables(text: str) -> str:
    """Return `text` with every syllable that is spelled as a filler and three letters in one character."""
    return SPELLED.sub(_syllable, text) if FILLER in text else text


def _syllable(spelled: re.Match[str]) -> str:
    initial, vowel, final = (letters.index(spelled[i]) for i, letters in enumerate((INITIALS, VOWELS, FINALS), 1))
    return chr(0xAC00 + (initial * len(VOWELS) + vowel) * len(FINALS) + final)


def _decode(data: bytes, errors: str = "strict") -> tuple[str, int]:
    text, length = codecs.getdecoder("cp949")(data, errors)
    return compose_syllables(text), length


class _IncrementalDecoder(codecs.IncrementalDecoder):
    def __init__(self, errors: str = "strict") -> None:
        super().__init__(errors)
        self._decoder = codecs.getincrementaldecoder("cp949")(errors)
        self._begun = ""

    def decode(self, data: bytes, final: bool = False) -> str:  # type: ignore[override]  # typeshed takes any buffer
        text = compose_syllables(self._begun + self._decoder.decode(data, final))
        begun = None if final else BEGUN.search(text)
        self._begun = begun[0] if begun else ""
        return text[: len(text) - len(self._begun)]

    def reset(self) -> None:
        self._decoder.reset()
        self._begun = ""

    def getstate(self) -> tuple[bytes, int]:
        """Return the bytes that are read and not yet in a text; see `codecs.IncrementalDecoder`."""
        pending, flag = self._decoder.getstate()
        return self._begun.encode("cp949") + pending, flag

    def setstate(self, state: tuple[bytes, int]) -> None:
        self.reset()
        self.decode(state[0])


def _codec(name: str) -> codecs.CodecInfo | None:
    if name != COMPOSING_CP949:
        return None
    encode = codecs.getencoder("cp949")
    return codecs.CodecInfo(encode, _decode, incrementaldecoder=_IncrementalDecoder, name=name)  # type: ignore[arg-type]  # as above


codecs.register(_codec)


class Iso2022KrToEucKr:
    """Makes EUC-KR of ISO-2022-KR, piece by piece. Bytes that it does not have become `INVALID`."""

    def __init__(self) -> None:
        self._is_shifted = False
        self._held = b""

    def convert(self, data: bytes, final: bool) -> bytes:
        """Return the next bytes; those of a header that may continue are held back unless `final`."""
        data = (self._held + data).replace(KR_HEADER, b"")
        begun = next((n for n in (3, 2, 1) if data.endswith(KR_HEADER[:n])), 0)
        kept = len(data) if final else len(data) - begun
        data, self._held = data[:kept], data[kept:]
        out = []
        for piece in SHIFTS.split(data):
            if SHIFTS.fullmatch(piece):
                # A line begins unshifted, whatever the one before it left.
                self._is_shifted = piece == SHIFT_OUT
                out.append(piece if piece in b"\r\n" else b"")
            else:
                out.append(piece.translate(SHIFTED if self._is_shifted else UNSHIFTED))
        return b"".join(out)


class _EucKrStream(io.RawIOBase):
    def __init__(self, stream: BinaryIO) -> None:
        self._stream, self._converter = stream, Iso2022KrToEucKr()
        self._ready, self._ended = b"", False

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]  # typeshed takes any buffer
        read = getattr(self._stream, "read1", self._stream.read)
        while not self._ready and not self._ended:
            data = read(READ_BYTES)
            self._ended = not data
            self._ready = self._converter.convert(data, self._ended)
        length = min(len(buffer), len(self._ready))
        buffer[:length], self._ready = self._ready[:length], self._ready[length:]
        return length

    def close(self) -> None:
        self._stream.close()
        super().close()


def euc_kr_stream(stream: BinaryIO) -> BinaryIO:
    """Return a stream of EUC-KR that reads ISO-2022-KR from `stream`; errors of reading that are passed on."""
    return cast(BinaryIO, io.BufferedReader(_EucKrStream(stream), READ_BYTES))
