"""Text as it should not be: each file is read as what it is, or refused in one line that names it."""

import gzip
import json
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import get_args

from malmoi.data_prep.shards.inspect import decoded_document, decoder_of, inspect_shards
from malmoi.data_prep.shards.manifest import SplitName
from tests.faults.fault import Fault
from tests.faults.outcome import Ended, Outcome, refusal
from tests.faults.workplace import Workplace, drop_rights

SENTENCE = "세종은 훈민정음을 만들었다. 펲시콜라와 똠방각하도 적는다."
GOOD_TEXT = "\n\n".join([SENTENCE] * 3)
JSON_LINE = json.dumps({"text": SENTENCE}, ensure_ascii=False) + "\n"


@dataclass(frozen=True)
class Input:
    """A file or folder, and what may come of it."""

    name: str
    make: Callable[[Path], object]
    """Called with the path that is read."""
    refused: bool | None
    """Whether it must be refused; otherwise every document that is read must hold the sentence. None: either."""
    words: tuple[str, ...] = ()


def _write(name: str, content: bytes, refused: bool | None, *words: str) -> Input:
    return Input(name, lambda file: file.write_bytes(content), refused, words)


def _folder(name: str, fill: Callable[[Path], object], refused: bool | None) -> Input:
    def make(folder: Path) -> None:
        folder.mkdir()
        (folder / "good.txt").write_text(GOOD_TEXT, encoding="utf-8")
        fill(folder)

    return Input(name, make, refused)


def _unreadable(folder: Path) -> None:
    (folder / "closed").mkdir(mode=0)


def _unreadable_file(folder: Path) -> None:
    (folder / "closed.txt").write_text(GOOD_TEXT, encoding="utf-8")
    (folder / "closed.txt").chmod(0)


INPUTS = (
    _write("good.txt", GOOD_TEXT.encode(), False),
    _write("empty.txt", b"", True),
    _write("blank.txt", b" \n\n \t\n", True),
    _write("only_bom.txt", b"\xef\xbb\xbf", True),
    _write("bom.txt", b"\xef\xbb\xbf" + GOOD_TEXT.encode(), False),
    _write("crlf.txt", GOOD_TEXT.replace("\n", "\r\n").encode(), False),
    _write("utf16.txt", GOOD_TEXT.encode("utf-16"), True),
    _write("utf32.txt", GOOD_TEXT.encode("utf-32"), True),
    _write("cp949.txt", GOOD_TEXT.encode("cp949"), True),
    _write("cp949_named.txt", GOOD_TEXT.encode("cp949"), False, "--encoding", "cp949"),
    _write("cp949_auto.txt", GOOD_TEXT.encode("cp949"), False, "--encoding", "auto"),
    _write("johab.txt", GOOD_TEXT.encode("johab"), True),
    _write("iso2022kr.txt", GOOD_TEXT.replace("펲", "펩").replace("똠", "돔").encode("iso2022_kr"), None),
    _write("eight_bytes.txt", GOOD_TEXT.encode("euc_kr"), False, "--encoding", "cp949"),
    _write("eight_bytes_auto.txt", GOOD_TEXT.encode("euc_kr"), False, "--encoding", "auto"),
    _write("broken_utf8.txt", GOOD_TEXT.encode()[:50] + b"\xff" + GOOD_TEXT.encode()[50:], True),
    _write("cut_utf8.txt", GOOD_TEXT.encode()[:-1] + b"\xea", True),
    _write("surrogate_utf8.txt", GOOD_TEXT.encode() + b"\xed\xa0\x80", True),
    _write("long_line.txt", (SENTENCE * 20_000).encode(), False),
    _write("binary.txt", bytes(range(256)) * 40, True),
    _write("good.jsonl", JSON_LINE.encode() * 3, False),
    _write("empty.jsonl", b"", True),
    _write("broken_line.jsonl", JSON_LINE.encode() + b'{"text": \n' + JSON_LINE.encode(), True),
    _write("cut.jsonl", JSON_LINE.encode() * 3 + JSON_LINE.encode()[:20], True),
    _write("no_field.jsonl", b'{"body": "a"}\n' * 3, True),
    _write("number.jsonl", b'{"text": 3}\n' * 3, True),
    _write("null.jsonl", b'{"text": null}\n' * 3, True),
    _write("array.jsonl", b'["text"]\n' * 3, True),
    _write("deep.jsonl", b"[" * 200_000 + b"\n", True),
    _write("deep_field.jsonl", b'{"text": ' + b"[" * 200_000 + b"\n", True),
    _write("surrogate.jsonl", b'{"text": "\\ud800 lone"}\n', True),
    _write("nan.jsonl", b'{"text": NaN}\n', True),
    _write("huge_number.jsonl", b'{"text": ' + b"9" * 100_000 + b"}\n", True),
    _write("deep.json", b"[" * 200_000, True),
    _write("cut.json", b'[{"text": "a"}, {"text": ', True),
    _write("good.jsonl.gz", gzip.compress(JSON_LINE.encode() * 3), False),
    _write("cut.jsonl.gz", gzip.compress(JSON_LINE.encode() * 300)[:-30], True),
    _write("flipped.jsonl.gz", gzip.compress(JSON_LINE.encode() * 3)[:-6] + b"\0" * 6, True),
    _write("not_gzip.jsonl.gz", JSON_LINE.encode(), True),
    _write("empty.txt.gz", b"", True),
    _write("not_zstd.txt.zst", b"text", True),
    _write("no.parquet", b"PAR1 no parquet PAR1", True),
    _write("no.arrow", b"ARROW1 no arrow", True),
    _write("no_column.csv", b"a,b\n1,2\n", True),
    _write("open_quote.csv", ('text\n"' + SENTENCE + "\n").encode(), True),
    _write("odd_row.csv", ("text,label\n" + SENTENCE + ",1,2,3\n").encode(), True),
    Input("fifo.txt", os.mkfifo, True),
    Input("device.txt", lambda file: file.symlink_to("/dev/zero"), True),
    Input("dangling.txt", lambda file: file.symlink_to("/nowhere/at/all"), True),
    Input("itself.txt", lambda file: file.symlink_to(file), True),
    Input("missing.txt", lambda file: None, True),
    Input("unknown.xyz", lambda file: file.write_text(GOOD_TEXT, encoding="utf-8"), True),
    _folder("folder", lambda folder: None, False),
    _folder("folder with an unreadable folder", _unreadable, True),
    _folder("folder with an unreadable file", _unreadable_file, True),
    _folder("folder with a dangling link", lambda folder: (folder / "b.txt").symlink_to("/nowhere/at/all"), None),
    _folder("folder with a link to itself", lambda folder: (folder / "loop").symlink_to(folder), None),
    _folder("folder with a fifo", lambda folder: os.mkfifo(folder / "pipe.txt"), None),
    _folder("folder with an empty folder", lambda folder: (folder / "sub").mkdir(), False),
    _folder(
        "folder with a name that is no UTF-8",
        lambda folder: Path(os.fsdecode(os.fsencode(folder) + b"/\xff\xfe.txt")).write_bytes(GOOD_TEXT.encode()),
        False,
    ),
    _folder(
        "folder with a name of two lines", lambda folder: (folder / "a\nb.txt").write_bytes(GOOD_TEXT.encode()), False
    ),
)


def input_faults() -> Iterator[Fault]:
    """Yield each input, prepared."""
    for given in INPUTS:
        yield Fault("hostile text", given.name + "".join(f" {word}" for word in given.words), partial(_prepare, given))


def _prepare(given: Input, place: Workplace) -> tuple[Outcome, Ended]:
    path = place.folder / given.name
    given.make(path)
    # As a user for whom permissions count.
    before = drop_rights if os.geteuid() == 0 else None
    ended = place.fork([*place.prepare_words(path), *given.words], before=before).end()
    if ended.code != 0:
        outcome = refusal(ended)
        # Refusing what could be read is a defect too.
        return (outcome if given.refused is not False or outcome is not Outcome.REFUSED else Outcome.CODE), ended
    if "Traceback" in ended.stderr:
        return Outcome.TRACEBACK, ended
    return (Outcome.RIGHT if given.refused is not True and _holds_sentence(place) else Outcome.SILENT), ended


def _holds_sentence(place: Workplace) -> bool:
    """Whether there are documents, and all of them are made of the sentence."""
    [folder] = (place.folder / "shards").glob("[!.]*")
    inspection = inspect_shards(folder)
    decoder = decoder_of(inspection, str(place.reference / "run" / "tokenizer"))
    texts = [
        decoded_document(inspection, number, decoder, split)
        for split in get_args(SplitName)
        for number in range(inspection.manifest.split(split).counts.documents)
    ]
    return bool(texts) and all(SENTENCE in text for text in texts)
