"""Korean encodings decode to the text that was encoded, however the bytes are divided."""

import codecs
import gzip
import json
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from malmoi.configs.corpus import CorpusSettings
from malmoi.data_prep.readers import chunks
from malmoi.data_prep.readers.encoding import with_encoding
from malmoi.data_prep.readers.korean_codecs import COMPOSING_CP949, KR_HEADER, Iso2022KrToEucKr, compose_syllables
from malmoi.data_prep.readers.sources import corpus_files
from malmoi.errors import UserError
from tests.data_prep.reading import SKIP, read

ENCODABLE = "".join(chr(code) for code in range(0xAC00, 0xD7A4)) + "abc 0!\n"
TEXTS = st.text(st.sampled_from(ENCODABLE))
SPELLED_OR_LOOSE = st.lists(
    st.sampled_from([*"\u3164ㄱㅏㄳ똠a\n", "\u3164ㄱㅏㄳ", "\u3164ㄱㅏ\u3164", "\u3164ㄱㅏ", "\u3164ㄱ"])
).map("".join)


def as_iso_2022_kr(text: str) -> bytes:
    """Encode as RFC 1557 has it: every line begins and ends in ASCII."""
    out = bytearray(KR_HEADER + b"\n")
    for line in text.split("\n"):
        for character in line:
            encoded = character.encode("euc_kr")
            is_hangul = encoded[0] & 0x80
            out += b"\x0e" + bytes(byte & 0x7F for byte in encoded) + b"\x0f" if is_hangul else encoded
        out += b"\n"
    return bytes(out[:-1]).replace(b"\x0f\x0e", b"")


def divided(data: bytes, cuts: list[int]) -> list[bytes]:
    places = sorted({0, len(data), *(cut % (len(data) + 1) for cut in cuts)})
    return [data[start:end] for start, end in pairwise(places)]


CUTS = st.lists(st.integers(0, 10_000), max_size=8)


@given(TEXTS)
def test_every_syllable_of_eight_bytes_becomes_one_character(text: str) -> None:
    assert text.encode("euc_kr").decode(COMPOSING_CP949) == text
    assert text.encode("cp949").decode(COMPOSING_CP949) == text


@given(SPELLED_OR_LOOSE, CUTS)
def test_a_piece_at_a_time_decodes_as_all_at_once(text: str, cuts: list[int]) -> None:
    data = b"".join(c.encode("cp949") for c in text)
    decoder = codecs.getincrementaldecoder(COMPOSING_CP949)()
    pieces = [decoder.decode(piece) for piece in divided(data, cuts)]
    assert (
        "".join([*pieces, decoder.decode(b"", final=True)]) == compose_syllables(text) == data.decode(COMPOSING_CP949)
    )


@given(SPELLED_OR_LOOSE, st.integers(0, 200))
def test_what_a_decoder_holds_back_is_in_its_state(text: str, cut: int) -> None:
    data = text.encode("cp949")
    first, second = (codecs.getincrementaldecoder(COMPOSING_CP949)() for _ in range(2))
    before = first.decode(data[:cut])
    pending = first.getstate()[0]
    assert data[:cut].endswith(pending)
    second.setstate(first.getstate())
    assert before + second.decode(data[cut:], final=True) == data.decode(COMPOSING_CP949)


def test_loose_letters_stay_loose() -> None:
    for text in (
        "ㅋㅋㅋ",
        "\u3164",
        "ㄱㅏㄱ",
        "\u3164ㅏㄱㄱ",
        "\u3164ㄳㅏㄱ",
        "\u3164ㄱㅏㅏ",
        "\u3164\u3164\u3164\u3164",
    ):
        assert text.encode("cp949").decode(COMPOSING_CP949) == text


@given(TEXTS, CUTS)
def test_iso_2022_kr_decodes_however_it_is_divided(text: str, cuts: list[int]) -> None:
    converter = Iso2022KrToEucKr()
    pieces = [converter.convert(piece, final=False) for piece in divided(as_iso_2022_kr(text), cuts)]
    assert b"".join([*pieces, converter.convert(b"", final=True)]).decode(COMPOSING_CP949) == "\n" + text


@given(text=TEXTS, suffix=st.sampled_from(["", ".gz"]), size=st.integers(1, 40), longest=st.integers(8, 60))
@settings(deadline=None, max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@pytest.mark.parametrize("encoding", ["euc-kr", "cp949", "iso-2022-kr"])
def test_auto_reads_every_korean_encoding_in_chunks_of_any_size(
    encoding: str, text: str, suffix: str, size: int, longest: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    text = f"가나다\n{text}"
    file = tmp_path_factory.getbasetemp() / f"{encoding}.txt{suffix}"
    data = as_iso_2022_kr(text) if encoding == "iso-2022-kr" else text.encode(encoding)
    file.write_bytes(gzip.compress(data) if suffix else data)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(chunks, "CHUNK_BYTES", size)
        patch.setattr(chunks, "BOUNDARY_BYTES", size)
        wanted = "auto" if encoding != "cp949" else "cp949"
        assert read(file, encoding=wanted) == [line for line in text.split("\n") if line.strip()]
        pieces = read(file, encoding=wanted, max_document_bytes=longest)
        assert "".join(pieces).replace(" ", "") == text.replace("\n", "").replace(" ", "")


def test_records_of_every_korean_encoding_are_read(tmp_path: Path) -> None:
    texts = ["똠방각하 펲시콜라", "가", "ascii"]
    rows = "".join(json.dumps({"text": text}, ensure_ascii=False) + "\n" for text in texts)
    for suffix, content in ((".jsonl", rows), (".json", rows), (".csv", "text\n" + "\n".join(texts) + "\n")):
        for encoding in ("euc-kr", "iso-2022-kr"):
            file = tmp_path / f"{encoding}{suffix}"
            file.write_bytes(as_iso_2022_kr(content)[5:] if encoding == "iso-2022-kr" else content.encode(encoding))
            if encoding == "iso-2022-kr":
                file.write_bytes(KR_HEADER + file.read_bytes())
            assert read(file, encoding="auto") == texts
            assert read(file, encoding=encoding) == texts


def test_iso_2022_kr_is_not_taken_for_ascii(tmp_path: Path) -> None:
    file = tmp_path / "a.txt"
    file.write_bytes(as_iso_2022_kr("한글\nplain\n"))
    for encoding in ("utf-8", "cp949", "euc-kr"):
        with pytest.raises(UserError, match=r"a\.txt: is ISO-2022-KR; set corpus\.encoding auto, or iso-2022-kr"):
            read(file, encoding=encoding)
    # UTF-8 that only mentions the header, and text whose shifted part is no Hangul, are what they are.
    for content in (KR_HEADER + "\n한글\n".encode(), KR_HEADER + b"\nplain\n", b"\x0e0!\x0f\n"):
        file.write_bytes(content)
        corpus = CorpusSettings(input=(str(file),), encoding="auto")
        assert [with_encoding(each, corpus).encoding for each in corpus_files(corpus)] == ["utf-8"]


def test_bytes_that_iso_2022_kr_does_not_have_cost_their_line(tmp_path: Path) -> None:
    file = tmp_path / "a.txt"
    file.write_bytes(as_iso_2022_kr("하나\n") + "셋".encode("euc-kr") + b"\n" + as_iso_2022_kr("둘")[5:] + b"\n\x0e0!0")
    with pytest.raises(UserError, match=r"a\.txt:3: not ISO-2022-KR at byte"):
        read(file, encoding="iso-2022-kr")
    assert read(file, encoding="iso-2022-kr", **SKIP) == ["하나", "둘"]
