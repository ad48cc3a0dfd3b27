"""The texts of a blind test: their authors, their lengths, and that each opening is used once."""

from dataclasses import replace
from pathlib import Path

import pytest

from malmoi.configs.commands import JudgeMakeOptions
from malmoi.configs.corpus import CorpusSettings
from malmoi.configs.outputs import SamplingSettings
from malmoi.configs.run import RunSettings
from malmoi.data_prep.pipeline.corpus import read_documents
from malmoi.data_prep.pipeline.mixture import prepare_sources
from malmoi.data_prep.readers.sources import corpus_files
from malmoi.data_prep.shards.manifest import read_manifest, shard_folder
from malmoi.data_prep.shards.token_stream import open_shards
from malmoi.errors import UserError
from malmoi.evaluation.human_eval.items import JudgeTest, read_test
from malmoi.evaluation.human_eval.make import (
    choose_openings,
    first_of_length,
    make_test,
    tokens_of_partial_characters,
)
from malmoi.inference.generate import generate
from malmoi.inference.model_folder import load_model
from malmoi.launch.cli import main
from malmoi.train.pretrain import pretrain


@pytest.fixture(scope="module")
def options(
    tiny_settings: RunSettings, corpus_file: Path, tmp_path_factory: pytest.TempPathFactory
) -> JudgeMakeOptions:
    """A test that takes seconds, of a hardly trained model with a context of 128 tokens."""
    folder = tmp_path_factory.mktemp("judged") / "run"
    wider = replace(tiny_settings.model, block_size=128)
    assert pretrain(replace(tiny_settings, run=str(folder), model=wider)) == 0
    model = str(folder / "model")
    return JudgeMakeOptions(
        model=(model,),
        data=str(corpus_file),
        texts=4,
        control_texts=2,
        target_chars=60,
        min_chars=40,
        opening="sentence",
        candidates=8,
    )


@pytest.fixture(scope="module")
def made(options: JudgeMakeOptions) -> JudgeTest:
    return make_test(options, lambda what: None)


def test_each_author_has_its_texts_matched_in_length_each_of_an_opening_of_its_own(
    made: JudgeTest, options: JudgeMakeOptions, korean_texts: list[str]
) -> None:
    assert [len(made.items_by(author)) for author in ("human", "model", "control")] == [4, 4, 2]
    assert len({item.opening for item in made.items}) == len({item.id for item in made.items}) == 10
    # Shuffled: the order of the file reveals nothing either.
    assert [item.author for item in made.items] != sorted((item.author for item in made.items), reverse=True)
    tokenizer = load_model(Path(options.model[0])).tokenizer
    for item in made.items:
        of_document = [text for text in korean_texts if text.lstrip().startswith(item.opening)]
        assert of_document
        assert abs(len(item.continuation) - item.human_characters) <= 0.1 * item.human_characters
        assert item.human_characters <= 1.1 * options.target_chars
        tokens = [len(tokenizer(text)["input_ids"]) for text in (item.opening, item.continuation)]
        assert item.author != "human" or sum(tokens) <= 128
        is_by_person = any(item.continuation in text for text in of_document)
        assert is_by_person == (item.author == "human")


def test_a_models_text_is_what_generate_samples_with_the_recorded_seed(
    made: JudgeTest, options: JudgeMakeOptions
) -> None:
    loaded = load_model(Path(options.model[0]))
    item = made.items_by("model")[0]
    settings = SamplingSettings(num_return_sequences=8, max_length=loaded.context_length, seed=item.seed)
    [result] = generate(loaded, [item.opening], settings)
    # More tokens may be drawn here than there, of which the first are the same.
    assert any(item.continuation in sample for sample in result.samples)


def test_no_text_has_a_sign_for_broken_bytes(
    made: JudgeTest, options: JudgeMakeOptions, korean_texts: list[str], tmp_path: Path
) -> None:
    assert not [item for item in made.items if "\ufffd" in item.opening + item.continuation]
    tokenizer = load_model(Path(options.model[0])).tokenizer
    partial = tokens_of_partial_characters(tokenizer)
    assert {tokenizer.convert_ids_to_tokens(token) for token in partial} == {f"<0x{n:02X}>" for n in range(128, 256)}
    assert first_of_length(["앞 가\ufffd나 다", "앞 가나다 라"], "앞", 3, "") == "가나다"
    broken = tmp_path / "broken.txt"
    broken.write_text("\n".join(korean_texts[:3]).replace("다", "\ufffd"), encoding="utf-8")
    assert choose_openings(replace(options, data=str(broken), document="line"), 10) == []


def test_the_same_seed_makes_the_same_test_and_another_seed_another(made: JudgeTest, options: JudgeMakeOptions) -> None:
    assert make_test(options, lambda what: None) == made
    other = replace(options, seed=7)
    assert [o.text for o in choose_openings(other, 10)] != [o.text for o in choose_openings(options, 10)]


def test_shards_give_validation_documents_only(
    finished_shards: Path, options: JudgeMakeOptions, korean_texts: list[str]
) -> None:
    from transformers import AutoTokenizer

    shards = shard_folder(finished_shards)
    tokenizer = AutoTokenizer.from_pretrained(options.model[0])
    training = {
        tokenizer.decode(shard.document(n).tolist(), skip_special_tokens=True)
        for shard in open_shards(shards, read_manifest(shards).train)
        for n in range(len(shard.lengths))
    }
    openings = choose_openings(replace(options, data=str(shards)), 100)
    assert openings
    for opening in openings:
        documents = [text for text in korean_texts if opening.text in text and opening.continuation in text]
        assert documents and not any(text in training for text in documents)


def test_the_command_makes_a_test_from_the_validation_split_of_shards(
    tiny_settings: RunSettings, options: JudgeMakeOptions, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from transformers import AutoTokenizer

    data = replace(tiny_settings.data, cache=None, val_fraction=0.5)
    tokenizer = Path(tiny_settings.tokenizer.path or "")
    [source] = prepare_sources(tiny_settings.corpus, data, tokenizer, tmp_path / "shards")
    words = ["judge", "make", "--model", *options.model, "--data", str(tmp_path / "shards"), "--texts", "4"]
    words += [
        "--control_texts",
        "2",
        "--target_chars",
        "60",
        "--min_chars",
        "40",
        "--candidates",
        "8",
        "--out",
        str(tmp_path / "test"),
    ]
    assert main(words) == 0, capsys.readouterr().err
    test = read_test(tmp_path / "test")
    assert [len(test.items_by(author)) for author in ("human", "model", "control")] == [4, 4, 2]
    reader = AutoTokenizer.from_pretrained(tokenizer)
    manifest = read_manifest(source.folder)
    texts = {
        name: [
            reader.decode(shard.document(number).tolist(), skip_special_tokens=True)
            for shard in open_shards(source.folder, split)
            for number in range(len(shard.lengths))
        ]
        for name, split in (("train", manifest.train), ("val", manifest.val))
    }
    for item in test.items:
        number = int(item.place.rsplit(" ", 1)[1])
        assert item.place == f"{source.folder}: validation document {number}"
        assert texts["val"][number].lstrip().startswith(item.opening)
        assert not any(text.lstrip().startswith(item.opening) for text in texts["train"])
    # Not the first documents alone.
    assert max(int(item.place.rsplit(" ", 1)[1]) for item in test.items) >= len(texts["val"]) // 3


def test_the_choice_of_openings_is_uniform_with_memory_for_those_alone(options: JudgeMakeOptions) -> None:
    settings = CorpusSettings(input=(options.data,))
    documents = sum(1 for _ in read_documents(corpus_files(settings), settings))
    places = [
        int(opening.place.rsplit(":", 1)[1])
        for seed in range(40)
        for opening in choose_openings(replace(options, seed=seed), 5)
    ]
    assert len(places) == 200
    # The mean of 200 fair draws lies within 5 standard errors of the middle.
    assert abs(sum(places) / 200 - documents / 2) < 5 * documents / 12**0.5 / 200**0.5 + documents * 0.1


def test_the_first_sample_long_enough_is_used_and_a_tokenizer_that_changes_text_is_refused() -> None:
    samples = ("앞 하나 둘", "앞 하나 둘 셋 넷 다섯 여섯", "앞 일곱 여덟 아홉 열 열하나")
    assert first_of_length(samples, "앞", 10, "m") == "하나 둘 셋 넷 다섯"[:11]
    assert first_of_length(samples[:1], "앞", 10, "m") is None
    with pytest.raises(UserError, match="does not decode to the text"):
        first_of_length(("뒤 하나 둘 셋",), "앞", 5, "m")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"seed": 2**31}, "--seed 2147483648 is out of range"),
        ({"control_temperature": 0.0}, "--control_temperature 0.0 is out of range"),
        ({"min_chars": 100_000}, "0 documents with an opening"),
        ({"target_chars": 500, "min_chars": 300}, "too few continuations reach the length"),
        ({"model": ("nowhere",)}, "nowhere: no such model folder"),
        ({"data": "nowhere.txt"}, "nowhere.txt"),
    ],
)
def test_what_cannot_be_made_is_refused(options: JudgeMakeOptions, change: dict[str, object], said: str) -> None:
    with pytest.raises(UserError, match=said):
        make_test(replace(options, **change), lambda what: None)  # type: ignore[arg-type]


def test_the_command_writes_a_test_once(
    options: JudgeMakeOptions, made: JudgeTest, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["judge", "make", "--model", *options.model, "--data", options.data, "--out", str(tmp_path / "test")]
    words += ["--texts", "4", "--control_texts", "2", "--target_chars", "60", "--min_chars", "40", "--candidates", "8"]
    assert main(words) == 0
    assert "10 texts, 4 by people, 4 by models, 2 deliberately bad" in capsys.readouterr().out
    assert read_test(tmp_path / "test") == made
    assert main(words) == 2
    assert "holds a test already" in capsys.readouterr().err
