import json
from pathlib import Path

import numpy as np
import pytest

from malmoi.configs.corpus import TextSettings
from malmoi.errors import UserError
from malmoi.evaluation.evaluate import evaluate, holds_shards, text_documents
from malmoi.inference.model_folder import LoadedModel, load_model
from malmoi.launch.cli import main
from tests.evaluation.fewshot.fewshot_models import gpt2


def test_shards_and_the_folder_around_them_are_not_read_as_text(finished_shards: Path, tmp_path: Path) -> None:
    assert holds_shards(finished_shards)
    assert holds_shards(finished_shards.parent)
    text = tmp_path / "text.jsonl"
    text.write_text(json.dumps({"body": "\u110b\u1165\u110c\u1166"}) + "\n")
    (tmp_path / ".hidden").mkdir()
    (tmp_path / ".hidden" / "manifest.json").write_text("{}")
    for path in (text, tmp_path, tmp_path / "none"):
        assert not holds_shards(path)
    [document] = text_documents(str(tmp_path), TextSettings(text_field="body"))
    assert document.text == "어제"


def test_several_models_are_rows_of_one_table(
    finished_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    ours, other = str(finished_run / "model"), str(gpt2(tmp_path / "other"))
    data = tmp_path / "text.txt"
    data.write_text("이순신은 조선의 장군이다.\n영화가 재미있다.\n", encoding="utf-8")
    capsys.readouterr()

    def printed(*words: str) -> str:
        assert main(["evaluate", "--data", str(data), *words]) == 0
        return capsys.readouterr().out

    each = [json.loads(printed("--model", model, "--json")) for model in (ours, other)]
    assert set(each[0]) == {"loss", "perplexity", "bits_per_byte", "tokens", "bytes"}
    assert json.loads(printed("--model", ours, other, "--json")) == {
        "results": [{"model": model, **score} for model, score in zip((ours, other), each, strict=True)]
    }
    monkeypatch.setenv("COLUMNS", "200")
    shown = printed("--model", ours, other)
    assert all(f"{score['bits_per_byte']:.4f}" in shown for score in each)


def test_the_function_takes_plain_arguments(tmp_path: Path) -> None:
    folder = gpt2(tmp_path / "model", positions=16)
    data = tmp_path / "text.jsonl"
    data.write_text(json.dumps({"body": "이순신은 조선의 장군이다."}) + "\n", encoding="utf-8")
    loaded = load_model(folder)
    result = evaluate(loaded, data, text_field="body")
    assert (result.tokens, result.bytes) == (len("이순신은 조선의 장군이다.".encode()), 36)
    assert result.loss == pytest.approx(np.log(result.perplexity))
    one_by_one = evaluate(str(folder), str(data), TextSettings(text_field="body"), batch_size=1)
    assert one_by_one.loss == pytest.approx(result.loss, rel=1e-6)
    assert evaluate(loaded, data, text_field="body", stride=1).loss != pytest.approx(result.loss, rel=1e-6)
    for change, message in (
        ({"stride": 17}, "^stride 17: choose 1 to the model's context of 16$"),
        ({"batch_size": 0}, "^batch_size 0: choose 1 or more$"),
        ({"text_fild": "body"}, "^unknown setting 'text_fild'; did you mean 'text_field'"),
        ({"encoding": "latin"}, "^encoding latin: give utf-8"),
        ({}, "text.jsonl:1: no field 'text'"),
    ):
        with pytest.raises(UserError, match=message):
            evaluate(loaded, data, **change)  # type: ignore[arg-type]
    with pytest.raises(UserError, match="has no folder"):
        evaluate(LoadedModel(loaded.model, loaded.tokenizer), data)
