"""Documents that hold evaluation data are found, and others are not."""

import gzip
import json
import string
import unicodedata
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from malmoi.configs.corpus import CleaningSettings, CorpusSettings, DocumentUnit, VocabularySettings
from malmoi.configs.data import ShardSettings
from malmoi.data_prep.filters.decontamination import SHORTEST, EvaluationRuns, evaluation_runs
from malmoi.data_prep.pipeline.build import build_tokenizer, prepare_shards
from malmoi.data_prep.shards.manifest import Manifest, read_manifest
from malmoi.errors import UserError
from tests.launching import run_malmoi

LENGTH = 20
SYLLABLES = "가나다라마바사아자차카타파하"
TEXTS = st.text(alphabet=SYLLABLES + "ab9 .,\n", max_size=120)


def kept(text: str) -> str:
    """What is compared, by the plain way."""
    return "".join(letter.lower()[0] for letter in unicodedata.normalize("NFC", text) if letter.isalnum())


def is_leak(document: str, evaluation: list[str]) -> bool:
    """The plain twin."""
    own, theirs = kept(document), [kept(text) for text in evaluation]
    runs = {text[i : i + LENGTH] for text in theirs for i in range(len(text) - LENGTH + 1)}
    if len(own) < LENGTH:
        return len(own) >= SHORTEST and own in theirs
    return any(own[i : i + LENGTH] in runs for i in range(len(own) - LENGTH + 1))


def runs_of(folder: Path, texts: list[str], name: str = "evaluation.jsonl") -> EvaluationRuns:
    file = folder / name
    file.write_text("".join(json.dumps({"q": text}) + "\n" for text in texts), encoding="utf-8")
    return evaluation_runs((str(file),), LENGTH)


@settings(deadline=None)
@given(documents=st.lists(TEXTS, max_size=6), evaluation=st.lists(TEXTS, min_size=1, max_size=4), data=st.data())
def test_what_is_found_is_what_the_plain_way_finds(
    tmp_path_factory: pytest.TempPathFactory, documents: list[str], evaluation: list[str], data: st.DataObject
) -> None:
    # Pieces of evaluation texts in documents, and of two texts across the border of two documents.
    for text in evaluation:
        start = data.draw(st.integers(0, max(0, len(text) - 1)))
        documents.append(data.draw(TEXTS) + text[start : start + data.draw(st.integers(1, 60))])
        documents.append(text[start:])
    texts = [*evaluation, "이 문장은 언제나 있어서 빈 파일이 되지 않습니다"]
    found = runs_of(tmp_path_factory.mktemp("runs"), texts).found_in(documents)
    assert found.tolist() == [is_leak(document, texts) for document in documents]


def test_spaces_punctuation_case_and_the_form_of_hangul_make_no_difference(tmp_path: Path) -> None:
    runs = runs_of(tmp_path, ["이순신은 1592년에 Hansan 섬 앞바다에서 크게 이겼다."])
    written = "… 이 순 신 은 1592년에 'HANSAN' 섬 앞 바다에서, 크게 이겼다고"
    assert runs.found_in(
        [written, unicodedata.normalize("NFD", written), "이순신은 1592년에 부산으로 갔다"]
    ).tolist() == [
        True,
        True,
        False,
    ]


def test_a_text_that_is_shorter_than_a_run_is_found_only_as_a_whole_document(tmp_path: Path) -> None:
    short = "가나다라마바사아자차카타파하가나"
    runs = runs_of(tmp_path, [short, "너무짧다"])
    assert SHORTEST <= len(short) < LENGTH
    assert runs.texts == 1
    assert runs.found_in([f"{short}.", f"{short}다", short[:-1], "너무짧다", ""]).tolist() == [True, *[False] * 4]


def test_the_lines_that_hold_one_are_cut_and_a_document_with_one_across_lines_is_dropped(tmp_path: Path) -> None:
    leak = "이 문장은 시험 문제에서 그대로 가져온 것입니다"
    runs = runs_of(tmp_path, [leak])
    assert runs.cut_from(f"첫 줄\n{leak}\n\n끝줄 {leak}\n다음") == ("첫 줄\n\n다음", 2)
    assert runs.cut_from(f"첫 줄\n{leak[:12]}\n{leak[12:]}") == (None, 0)
    assert runs.cut_from(f"{leak}\n ") == (None, 1)


def test_no_document_is_no_leak(tmp_path: Path) -> None:
    assert runs_of(tmp_path, ["가" * 40]).found_in([]).tolist() == []


def test_every_text_of_a_record_counts_in_every_format(tmp_path: Path) -> None:
    leaks = [f"{letter * 5}이 문장은 시험 문제에서 그대로 가져온 것입니다" for letter in string.ascii_lowercase[:6]]
    nested = {"question": leaks[0], "choices": [{"text": leaks[1]}], "answer": 1}
    with gzip.open(tmp_path / "a.jsonl.gz", "wt", encoding="utf-8") as stream:
        stream.write(json.dumps(nested) + "\n")
    (tmp_path / "b.csv").write_text(f"label,document\n1,{leaks[2]}\n", encoding="utf-8")
    (tmp_path / "c.txt").write_text(f"7\t{leaks[3]}\n", encoding="utf-8")
    pq.write_table(pa.table({"premise": [leaks[4]], "label": [1], "hypothesis": [leaks[5]]}), tmp_path / "d.parquet")
    runs = evaluation_runs((str(tmp_path),), LENGTH)
    assert runs.texts == 6
    assert runs.found_in([f"앞에 있는 글. {leak} 뒤에 있는 글." for leak in leaks]).all()


@pytest.fixture(scope="module")
def tokenizer(corpus_file: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    corpus = CorpusSettings(input=(str(corpus_file),))
    return build_tokenizer(
        corpus, VocabularySettings(vocab_size=1900), tmp_path_factory.mktemp("tokenizer") / "made", False
    )


def test_planted_leaks_leave_the_shards_and_are_counted_with_what_was_checked(
    tokenizer: Path, corpus_file: Path, tmp_path: Path
) -> None:
    lines = corpus_file.read_text(encoding="utf-8").splitlines()
    leaks = [
        f"{number}번 문제입니다. 다음 글을 읽고 옳은 것을 둘만 고르시오: {number * 7919}원짜리 책상 위에 놓인 물건"
        for number in range(30)
    ]
    rng = np.random.default_rng(1)
    planted = list(lines)
    for leak in leaks:
        planted.insert(int(rng.integers(len(planted))), f"퍼온 글입니다 {leak.replace(' ', '')} 끝")
    (tmp_path / "corpus.txt").write_text("\n".join(planted), encoding="utf-8")
    (tmp_path / "clean.txt").write_text("\n".join(lines), encoding="utf-8")
    (tmp_path / "test.jsonl").write_text("".join(json.dumps({"q": leak}) + "\n" for leak in leaks), encoding="utf-8")

    def manifest_of(name: str, document: DocumentUnit = "line", **cleaning: object) -> Manifest:
        corpus = CorpusSettings(
            input=(str(tmp_path / name),),
            document=document,
            cleaning=CleaningSettings(**cleaning),  # type: ignore[arg-type]  # any field
        )
        data = ShardSettings(val_fraction=0.1, workers=1)
        return read_manifest(prepare_shards(corpus, data, tokenizer, tmp_path / "shards"))

    evaluation = {"decontaminate": (str(tmp_path / "test.jsonl"),)}
    clean, dropped = manifest_of("clean.txt"), manifest_of("corpus.txt", **evaluation)
    assert dropped.cleaned == {"contaminated": 30}
    assert (dropped.train.counts, dropped.val.counts) == (clean.train.counts, clean.val.counts)
    assert dropped.settings["evaluation texts looked for"] == 30
    assert dropped.settings["corpus.cleaning.decontaminate"] == str(tmp_path / "test.jsonl")
    (tmp_path / "joined.txt").write_text(f"앞의 줄\n{leaks[0]}\n뒤의 줄\n\n{leaks[1]}", encoding="utf-8")
    cut = manifest_of("joined.txt", document="paragraph", **evaluation, decontaminate_action="cut")
    assert cut.cleaned == {"contaminated": 1, "contaminated_line": 1}
    assert cut.train.counts.bytes + cut.val.counts.bytes == len("앞의 줄\n뒤의 줄".encode())
    assert manifest_of("corpus.txt", **evaluation, decontaminate_run=31).fingerprint != dropped.fingerprint
    reported = manifest_of("corpus.txt", **evaluation, decontaminate_action="report")
    assert reported.fingerprint != dropped.fingerprint
    assert reported.cleaned == {"contaminated_kept": 30}
    assert reported.train.counts.documents + reported.val.counts.documents == len(planted)
    # Another content under the same name is another corpus.
    (tmp_path / "test.jsonl").write_text(json.dumps({"q": leaks[0]}) + "\n", encoding="utf-8")
    fewer = manifest_of("corpus.txt", **evaluation)
    assert fewer.cleaned == {"contaminated": 1}
    assert fewer.fingerprint != dropped.fingerprint


def test_evaluation_data_that_cannot_be_used_are_one_line(tokenizer: Path, corpus_file: Path, tmp_path: Path) -> None:
    (tmp_path / "short.jsonl").write_text('{"q": "짧다"}\n', encoding="utf-8")
    (tmp_path / "broken.jsonl").write_text('{"q": \n', encoding="utf-8")
    for name, message in (
        ("short.jsonl", "holds no text of 15 letters and digits or more"),
        ("broken.jsonl", "broken.jsonl:1: "),
        ("gone.jsonl", "gone.jsonl"),
    ):
        corpus = CorpusSettings(
            input=(str(corpus_file),), cleaning=CleaningSettings(decontaminate=(str(tmp_path / name),))
        )
        with pytest.raises(UserError, match=message):
            prepare_shards(corpus, ShardSettings(workers=1), tokenizer, tmp_path / "shards")


def test_the_command_line_looks_for_the_evaluation_data_of_the_package(
    tokenizer: Path, corpus_file: Path, tmp_path: Path
) -> None:
    flags = ["--input", str(corpus_file), "--tokenizer", str(tokenizer), "--out", str(tmp_path / "shards")]
    done = run_malmoi(
        "prepare", *flags, "--cleaning.decontaminate", "[package:evaluation/fewshot/tasks/data]", "--workers", "2"
    )
    assert done.returncode == 0, done.stderr
    (folder,) = [each for each in (tmp_path / "shards").iterdir() if (each / "manifest.json").is_file()]
    assert read_manifest(folder).settings["evaluation texts looked for"] > 1000  # type: ignore[operator]  # a whole number
