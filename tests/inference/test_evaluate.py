import json
from pathlib import Path

import pytest

from launch.cli import main
from tests.inference.fewshot_models import gpt2


def test_several_models_stand_in_one_table(
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
