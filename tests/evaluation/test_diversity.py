import json
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("sacrebleu", reason="the extra `eval` is not installed")

from sacrebleu.metrics import BLEU
from transformers import AutoTokenizer

from malmoi.configs.outputs import SamplingSettings
from malmoi.data_prep.shards.token_stream import open_split
from malmoi.evaluation.diversity import distinct, repetition, self_bleu
from malmoi.inference.generate import generate
from malmoi.inference.model_folder import load_model
from malmoi.launch.cli import main
from tests.evaluation.fewshot.fewshot_models import gpt2

TEXTS = ["가 나 가 나 가 나", "가 나 다", "라"]
WORDS = [text.split() for text in TEXTS]


def test_distinct_counts_distinct_ngrams_of_all_texts_together() -> None:
    assert distinct(WORDS, 1) == 4 / 10
    assert distinct(WORDS, 2) == 3 / 7  # 가나 나가 나다 of 5 + 2
    assert distinct([["가"]], 2) == 0.0


def test_repetition_is_the_fraction_of_repeated_4_grams_within_a_text() -> None:
    # 가나가나 나가나가 가나가나: one of three is a repeat; the other texts are too short for four words.
    assert repetition(WORDS) == pytest.approx(1 / 3)
    assert repetition([list("abcdabcdabcd"), list("abcdefgh")]) == pytest.approx((5 / 9 + 0) / 2)


def test_self_bleu_is_each_text_against_all_the_others() -> None:
    words = [list("abcdef"), list("abcdxy"), list("uvwxyz")]
    bleu = BLEU(tokenize="none", effective_order=True)
    texts = [" ".join(text) for text in words]
    each = [bleu.sentence_score(text, [t for t in texts if t != text]).score for text in texts]
    assert self_bleu(words) == pytest.approx(sum(each) / 3)
    assert self_bleu([list("abcdef")] * 3) == pytest.approx(100)
    assert self_bleu([list("abcd"), list("efgh")]) < 1


def printed(capsys: pytest.CaptureFixture[str], *words: str) -> dict[str, Any]:
    capsys.readouterr()
    assert main(["quality", *words, "--json"]) == 0
    read: dict[str, Any] = json.loads(capsys.readouterr().out)
    return read


def test_copied_text_is_found_in_the_training_shards(
    finished_run: Path, finished_shards: Path, corpus_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shards, model = str(finished_shards), str(finished_run / "model")
    tokenizer = AutoTokenizer.from_pretrained(model)
    known = tokenizer.decode(_first_document(shards), skip_special_tokens=True)
    inner = known[known.index(" ") :][:120]
    texts = tmp_path / "texts.jsonl"
    lines = [f"여기부터{inner}", known, "ㅋㅌㅍㅎ qwxz"]
    texts.write_text("".join(json.dumps({"text": text}, ensure_ascii=False) + "\n" for text in lines))
    found = printed(capsys, "--model", model, "--texts", str(texts), "--data", shards)
    memorization = found["memorization"]
    assert found["texts"] == 3
    assert memorization["longest_match"] == known
    assert memorization["max_match_tokens"] == len(tokenizer(known, add_special_tokens=False)["input_ids"])
    assert memorization["verbatim_fraction"] == pytest.approx(1 / 3)
    texts.write_text("".join(json.dumps({"text": text}, ensure_ascii=False) + "\n" for text in lines[::2]))
    found = printed(capsys, "--model", model, "--texts", str(texts), "--data", shards)
    assert inner[:100] in found["memorization"]["longest_match"]


def _first_document(shards: str) -> list[int]:
    stream = open_split(Path(shards), "train")
    return [int(token) for token in stream.shards[0].document(0)]


def test_samples_of_the_model_are_measured_without_their_prompts(
    finished_run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sampling = ("--prompt", "이 영화", "--num_return_sequences", "4", "--max_new_tokens", "12")
    found = printed(capsys, "--model", str(finished_run / "model"), *sampling)
    assert found["texts"] <= 4 and found["memorization"] is None
    assert 0 < found["diversity"]["distinct_1"] <= 1
    loaded = load_model(finished_run / "model")
    [result] = generate(loaded, ["이 영화"], SamplingSettings(num_return_sequences=4, max_new_tokens=12))
    assert found["words"] == sum(len(text.removeprefix("이 영화").split()) for text in result.samples)


def test_what_cannot_be_measured_is_a_one_line_error(
    finished_run: Path, finished_shards: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "one.txt").write_text("한 줄\n")
    other = str(gpt2(tmp_path / "other"))
    capsys.readouterr()
    for words, message in [
        (("--texts", str(tmp_path / "one.txt")), "diversity needs two texts or more"),
        (("--data", str(tmp_path)), "no shard folder"),
        (("--data", str(finished_shards), "--model", other), "made with another tokenizer"),
    ]:
        assert main(["quality", "--model", str(finished_run / "model"), *words]) == 2
        refused = capsys.readouterr().err
        assert message in refused and refused.count("\n") == 1
